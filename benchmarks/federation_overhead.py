"""What the in-process federation costs: wall time of the rounds over the sum of the sites' own work.

    python benchmarks/federation_overhead.py            the demo study, 3 rounds a phase; target: at most 1.05
    python benchmarks/federation_overhead.py configs/demo.yaml --rounds 6 --set student.width=32

The sites work one after another in one process, so what is left of a round's wall time is the federation:
messages, checks, aggregation. The caches that a site makes in its first round count as its own work.
Exit code 1 if the ratio is above `--target`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from feddusss import cli

TARGET = 1.05


@dataclass(frozen=True)
class Overhead:
    """Seconds of one phase's rounds, and of the sites' work in them."""

    phase: str
    rounds: int
    wall: float
    sites: float

    @property
    def ratio(self) -> float:
        return self.wall / self.sites


def main(argv: list[str] | None = None) -> int:
    """Run the study, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", default="demo", help="a study file or preset (demo)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each phase (3)")
    parser.add_argument("--target", type=float, default=TARGET, help=f"largest ratio that passes ({TARGET})")
    cli.add_common_arguments(parser)
    return cli.run(_measure, parser, argv)


def measure(folder: Path) -> list[Overhead]:
    """The overhead of each phase of the run in `folder`."""
    from server.runs.lines import ALL_SITES
    from server.runs.runfiles import read_run

    run = read_run(folder)
    phases = []
    for phase in run.phases:
        # the line of a round without training (the last model's validation) has no seconds
        wall = {
            line["round"]: line["seconds"]
            for line in run.rounds
            if line["phase"] == phase and line["site"] == ALL_SITES and "seconds" in line
        }
        sites = sum(
            line.get("seconds", 0.0)
            for line in run.rounds
            if line["phase"] == phase and line["site"] != ALL_SITES and line["round"] in wall
        )
        phases.append(Overhead(phase, len(wall), sum(wall.values()), sites))
    return phases


def _measure(arguments: argparse.Namespace) -> int:
    from server.runs.events import Reporter
    from server.simulation.simulate import simulate
    from server.study.config import load_study

    rounds = [f"{phase}.rounds={arguments.rounds}" for phase in ("pretrain", "segment")]
    # side by side in worker processes the sites' seconds would add up to more than the wall's
    study = load_study(arguments.study, [*rounds, "simulation.workers=1", *arguments.overrides])
    with tempfile.TemporaryDirectory() as folder:
        simulate(study, Path(folder) / "run", reporter=Reporter())
        phases = measure(Path(folder) / "run")
    phases.append(Overhead("both", *(sum(getattr(p, key) for p in phases) for key in ("rounds", "wall", "sites"))))
    print(f"{'phase':<10}{'rounds':>8}{'wall':>10}{'sites':>10}{'ratio':>8}")
    for phase in phases:
        print(f"{phase.phase:<10}{phase.rounds:>8}{phase.wall:>8.2f} s{phase.sites:>8.2f} s{phase.ratio:>8.3f}")
    passed = phases[-1].ratio <= arguments.target
    print(f"{'passed' if passed else 'missed'}: at most {arguments.target} is wanted")
    return cli.OK if passed else cli.FAILED


if __name__ == "__main__":
    sys.exit(main())
