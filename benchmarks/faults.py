"""Does to a real federation what happens to real ones, and prints what was lost and how long it took to recover.

    python benchmarks/faults.py                      every fault (about half an hour on two idle cores)
    python benchmarks/faults.py --quick              what is tested before each merge (at most 6 minutes)
    python benchmarks/faults.py --only slow_site     one fault; may be given several times

A SuperLink with TLS, keys and a database, three hospitals with `python -m client`, and `python -m server run`, all on
loopback with a small model. After each fault the study must complete, its log must name what happened, and where a
promise says so the final model must be that of a run that nobody disturbed. Exit code 1 if one was not survived.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.fault_kinds import FAULTS, Fault, Outcome
from benchmarks.fault_lab import ROUNDS, SITES, Lab, NotSurvived, open_lab
from feddusss import cli
from tests.server.conftest import HOSPITALS, make_study


def main(argv: list[str] | None = None) -> int:
    """Do the faults, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), metavar="NAME", help=", ".join(FAULTS))
    parser.add_argument("--quick", action="store_true", help="a selection")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_run, parser, argv)


def selected(only: list[str] | None, quick: bool) -> list[Fault]:
    """The faults that are to be done."""
    return [f for f in FAULTS.values() if (f.name in only if only else f.quick or not quick)]


def survive(lab: Lab, one: Fault) -> tuple[Outcome | None, str]:
    """Do a fault; the outcome, or None and why it was not survived."""
    try:
        lab.heal()
        return one.do(lab, one.name), ""
    except PermissionError as error:
        why = f"not done: {error}"
    except (NotSurvived, AssertionError, subprocess.TimeoutExpired) as error:
        why = " ".join(str(error).split())[:400]
    lab.end_victim()
    return None, why


def study_of_faults():
    """A small study: no pretraining, a tiny student."""
    hospitals = [{**HOSPITALS[0], "name": name} for name in SITES]
    federation = {"min_sites": 2, "round_timeout_s": 600, "start_timeout_s": 240}
    return make_study(
        hospitals,
        study="faults",
        method={"preset": "mean_teacher"},
        segment__rounds=ROUNDS,
        segment__epochs=3,
        federation=federation,
    )


def _run(arguments: argparse.Namespace) -> int:
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as folder, open_lab(Path(folder), study_of_faults()) as lab:
        for one in selected(arguments.only, arguments.quick):
            began = time.monotonic()
            outcome, why = survive(lab, one)
            seconds = time.monotonic() - began
            failed |= outcome is None and not why.startswith("not done")
            rows.append(_row(one, outcome, why))
            print(f"[{seconds:6.0f} s] {rows[-1]}", file=sys.stderr, flush=True)
    print("\n".join(["| Fault | Survived | Lost | Recovery | Final model |", "|---|---|---|---|---|", *rows]))
    return cli.FAILED if failed else cli.OK


def _row(one: Fault, outcome: Outcome | None, why: str) -> str:
    if outcome is None:
        survived = "not done" if why.startswith("not done") else "**no**"
        return f"| {one.title} | {survived} | {why} | | |"
    seconds = "" if outcome.recovery_s is None else f"{outcome.recovery_s:.0f} s"
    return f"| {one.title} | yes | {outcome.lost} | {seconds} | {'as undisturbed' if outcome.equal else ''} |"


if __name__ == "__main__":
    sys.exit(main())
