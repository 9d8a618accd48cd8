"""What relays between the coordinator and very many sites would bring: a reckoning from measured constants.

    python -m benchmarks.hierarchy                       100,000 sites, the constants of results/performance/
    python -m benchmarks.hierarchy --sites 10000 --network 10

A relay has `fan-out` children: it hands the model on to them, adds up what they answer and answers with the sum. It
takes one answer at a time, in `seconds` of one core or in the time that its network needs, whichever is longer. Sites
are done at times that are drawn (log-normal); what is told is how long after the slowest site the root is done.
docs/performance.md says what Flower lacks for this, and which of the project's promises hold.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feddusss import cli

if TYPE_CHECKING:
    import numpy as np

FAN_OUTS = (10, 32, 100, 316, 1000)
MEDIAN_S, SPREAD, SEED = 600.0, 0.3, 1
"""Of the sites' own times: median in seconds, standard deviation of the logarithm."""


@dataclass(frozen=True)
class Constants:
    """What one answer costs the one who adds it up."""

    seconds: float
    """Of one core."""
    megabytes: float
    gigabits: float = 1.0
    """Per second, of a relay's or the root's network, each way."""

    @property
    def up_s(self) -> float:
        """Between two answers."""
        return max(self.seconds, self.down_s)

    @property
    def down_s(self) -> float:
        """To send the model to one child."""
        return self.megabytes * 8e-3 / self.gigabits


@dataclass(frozen=True)
class Tree:
    """What a tree of relays comes to."""

    fan_out: int
    levels: int
    """Between root and sites; 1: no relay."""
    relays: int
    down_s: float
    """Until the last site has the model."""
    up_s: float
    """From the slowest site's answer until the root has added the last one."""


def tree(sites: int, fan_out: int, constants: Constants) -> Tree:
    """Reckon one tree."""
    levels = max(1, math.ceil(math.log(sites) / math.log(fan_out) - 1e-9))
    times = _site_times(sites)
    slowest = float(times.max())
    relays = 0
    for level in range(levels):
        groups = math.ceil(len(times) / fan_out) if level < levels - 1 else 1
        times = _added(times, groups, constants.up_s)
        relays += groups if level < levels - 1 else 0
    down = levels * min(fan_out, sites) * constants.down_s
    return Tree(fan_out, levels, relays, down, float(times[0]) - slowest)


def constants_of(federation: dict[str, Any], deployed: dict[str, Any], model: str) -> Constants:
    """From what benchmarks/federation.py and benchmarks/deployment_overhead.py found.

    Args:
        deployed: model -> its document.
    """
    cell = max((c for c in federation["cells"] if c["model"] == model), key=lambda c: c["sites"])
    return Constants(_deployed_s(deployed[model]), cell["ours"]["bytes_up"] / cell["sites"] / 1e6)


def _deployed_s(document: dict[str, Any]) -> float:
    """CPU-seconds of SuperLink and ServerApp for one message of one site, there and back, without their start."""
    coordinator = sum(
        document["processes"][name]["cpu_s"] for name in ("server.deployment.superlink", "flwr-serverapp")
    )
    return (coordinator - document["start_cpu_s"]) / (document["sites"] * document["messages_per_site"])


def _site_times(sites: int) -> np.ndarray:
    import numpy as np

    return MEDIAN_S * np.exp(SPREAD * np.random.default_rng(SEED).standard_normal(sites))


def _added(times: np.ndarray, groups: int, service_s: float) -> np.ndarray:
    """When each of `groups` relays has added its last answer: it takes them as they come, one after the other."""
    import numpy as np

    done = []
    for group in np.array_split(times, groups):
        # of n answers in order of arrival, the i-th leaves n - i others behind it
        order = np.sort(group)
        done.append((order + service_s * np.arange(len(order), 0, -1)).max())
    return np.array(done)


def rows(sites: int, constants: Constants) -> list[Tree]:
    """No relay, and each fan-out."""
    return [tree(sites, fan_out, constants) for fan_out in (*FAN_OUTS, sites)]


def main(argv: list[str] | None = None) -> int:
    """Print the table of both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=100_000, help="sites (100000)")
    parser.add_argument("--network", type=float, default=1.0, help="Gbit/s of each relay (1)")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_print, parser, argv)


def _print(arguments: argparse.Namespace) -> int:
    import json
    from dataclasses import replace

    from benchmarks.measured import RESULTS

    def read(name: str) -> dict[str, Any]:
        return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))

    deployed = {model: read(f"deployed-{model}") for model in ("small", "paper")}
    for model in deployed:
        constants = replace(constants_of(read("federation"), deployed, model), gigabits=arguments.network)
        print(f"{model}: {constants.seconds:.2f} CPU-s and {constants.megabytes:.2f} MB an answer")
        for one in rows(arguments.sites, constants):
            print(
                f"  fan-out {one.fan_out:>7,}: {one.levels} levels, {one.relays:>6,} relays, "
                f"down {one.down_s:>8,.0f} s, up {one.up_s:>8,.0f} s"
            )
    return cli.OK


if __name__ == "__main__":
    import sys

    sys.exit(main())
