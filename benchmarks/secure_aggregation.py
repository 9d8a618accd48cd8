"""What secure aggregation costs: seconds and bytes of a round, without training and without a network.

    python benchmarks/secure_aggregation.py                       3, 5 and 10 sites; a million numbers
    python benchmarks/secure_aggregation.py --numbers 10000000    as many as the model has

One line per number of sites: time at one site, at the coordinator when nobody drops out and when as many sites drop out
as the default threshold allows, and the bytes of the small steps, beside 8 bytes per number that go up.
"""

from __future__ import annotations

import argparse
import secrets
import time
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec

from feddusss import cli
from feddusss.secagg.convener import Convener
from feddusss.secagg.member import Member, default_threshold
from feddusss.secagg.records import Occasion, dump


@dataclass(frozen=True)
class Cost:
    """One session, per site where nothing else is said."""

    sites: int
    threshold: int
    site_s: float
    """All five steps at one site."""
    coordinator_s: float
    dropped: int
    coordinator_dropped_s: float
    up: int
    """Bytes of the small steps."""
    down: int


def main(argv: list[str] | None = None) -> int:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 5, 10])
    parser.add_argument("--numbers", type=int, default=1_000_000, help="of the model (1000000)")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_print, parser, argv)


def measure(sites: int, numbers: int) -> Cost:
    """One session without drop-outs and one with as many as the default threshold allows."""
    threshold = default_threshold(sites)
    site_s, whole_s, up, down = _session(sites, threshold, numbers, gone=0)
    gone = sites - threshold
    dropped_s = _session(sites, threshold, numbers, gone)[1] if gone else whole_s
    return Cost(sites, threshold, site_s, whole_s, gone, dropped_s, up, down)


def _session(sites: int, threshold: int, numbers: int, gone: int) -> tuple[float, float, int, int]:
    """Seconds of the first site, seconds of the coordinator, small bytes of the first site up and down."""
    names = [f"site_{at:02d}" for at in range(sites)]
    keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in names}
    peers = {name: {other: keys[other].public_key() for other in names if other != name} for name in names}
    about = Occasion(
        run="0" * 32, phase="segment", round=1, attempt=secrets.token_hex(16), threshold=threshold, task="0" * 64
    )
    clock, up, down = _Clock(names[0]), 0, 0
    members = {name: clock(name, Member.begin, about, name, keys[name]) for name in names}
    convener = Convener(about, [member.state.advert for member in members.values()])
    adverts = convener.adverts()
    for name, member in members.items():
        dealing = clock(name, member.deal, adverts.adverts, peers[name], 2, keys[name])
        up = up or len(dump(dealing)) + len(dump(member.state.advert))
        convener.take_dealing(name, dealing)
    survivors = names[: sites - gone]
    for name in survivors:
        deliveries = convener.deliveries(name)
        vector = np.zeros(numbers, dtype=np.uint64)
        clock(name, members[name].receive, deliveries.dealings, peers[name])
        clock(name, members[name].mask, vector)
        convener.add(name, vector)
    down += len(dump(about)) + len(dump(adverts)) + len(dump(convener.deliveries(names[0])))
    for name in survivors:
        convener.take_vote(name, clock(name, members[name].vote, convener.survivors, keys[name]))
    ballot = convener.ballot()
    revealed = {name: clock(name, members[name].reveal, ballot, peers[name]) for name in survivors}
    up += len(dump(ballot.votes[0])) + len(dump(revealed[names[0]]))
    down += 2 * len(dump(ballot))
    began = time.perf_counter()
    for name, shares in revealed.items():
        convener.take_revealed(name, shares)
    assert not convener.total().any()
    return clock.seconds, time.perf_counter() - began, up, down


class _Clock:
    """Adds up the time of one site's calls."""

    def __init__(self, name: str):
        self.seconds = 0.0
        self._name = name

    def __call__(self, name, call, *arguments):
        began = time.perf_counter()
        result = call(*arguments)
        if name == self._name:
            self.seconds += time.perf_counter() - began
        return result


def _print(arguments: argparse.Namespace) -> None:
    print(f"{arguments.numbers} numbers, {8 * arguments.numbers / 1e6:.0f} MB up from each site\n")
    print("| sites | threshold | at a site | at the coordinator | with drop-outs | small steps up | down |")
    print("|---|---|---|---|---|---|---|")
    measure(2, 1000)  # imports
    for sites in arguments.sites:
        cost = measure(sites, arguments.numbers)
        dropped = f"{cost.coordinator_dropped_s:.2f} s ({cost.dropped})" if cost.dropped else "none allowed"
        print(
            f"| {cost.sites} | {cost.threshold} | {cost.site_s:.2f} s | {cost.coordinator_s:.2f} s | {dropped} | "
            f"{cost.up / 1e3:.1f} kB | {cost.down / 1e3:.1f} kB |"
        )


if __name__ == "__main__":
    raise SystemExit(main())
