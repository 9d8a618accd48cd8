"""Measures all that docs/performance.md tells, and writes the page from it.

    python -m benchmarks.performance --against WORKTREE --nvflare FOLDER/bin/python
    python -m benchmarks.performance --quick --against WORKTREE       a quarter of an hour on two idle cores
    python -m benchmarks.performance --only federation,deployed
    python -m benchmarks.performance --page         only the page, from what was measured before
    python -m benchmarks.performance --check        exit code 1 if that would change the page

WORKTREE is a checkout of an older commit, with which the federation is compared in turns (git worktree add WORKTREE
COMMIT). FOLDER is an environment with NVFlare and torch. What is not named is left out, and its figures stay as they
are. Each part is a command of its own; what one cannot measure does not stop the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import measured, performance_page
from benchmarks.pages import with_body
from dusss_core.files import write_text
from feddusss import cli

PAGE = measured.HERE / "docs" / "performance.md"
PARTS = ("steps", "federation", "nvflare", "deployed", "compression")
"""The order in which they are measured."""


def main(argv: list[str] | None = None) -> int:
    """Measure what is asked for, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, with commas between ({','.join(PARTS)})")
    parser.add_argument("--quick", action="store_true", help="fewer sites, sizes and repeats")
    parser.add_argument("--against", type=Path, help="a checkout of an older commit, to compare with")
    parser.add_argument("--nvflare", type=Path, help="an interpreter that has NVFlare and torch")
    parser.add_argument("--page", action="store_true", help="measure nothing")
    parser.add_argument("--check", action="store_true", help="measure nothing and write nothing")
    parser.add_argument("--results", type=Path, default=measured.RESULTS, help="folder of the JSON files")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_main, parser, argv)


def page(results: Path = measured.RESULTS) -> str:
    """The text of the page, made anew from the JSON files."""
    documents = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(results.glob("*.json"))}
    text = PAGE.read_text(encoding="utf-8")
    for name, body in performance_page.bodies(documents).items():
        begin, end = f"<!-- {name}: written by benchmarks/performance.py -->", f"<!-- {name}: end -->"
        text = with_body(PAGE, begin, end, body, text)
    return text


def commands(arguments: argparse.Namespace) -> dict[str, list[list[str]]]:
    """The commands of each part, without the interpreter."""
    results, quick = arguments.results, arguments.quick
    older = [] if arguments.against is None else ["--against", str(arguments.against.resolve())]

    def kept(name: str) -> list[str]:
        return ["--json", str(results / f"{name}.json")]

    steps = ["benchmarks/steps.py", "--out", str(results / "steps-cpu.json"), "--device", "cpu"]
    size = ["--sizes", "demo", "--batches", "8", "--threads", "1", "--repeats", "3"] if quick else []
    rounds = ["--rounds", "4" if quick else "6"]
    beside = [] if quick else older  # it takes three deployments
    deployed = [
        ["benchmarks/deployment_overhead.py", "--model", model, *rounds, *beside, *kept(f"deployed-{model}")]
        for model in ("small", "paper")
    ]
    nvflare = ["-m", "benchmarks.rivals.against_nvflare", "--nvflare", str(arguments.nvflare), *older, *kept("nvflare")]
    return {
        "steps": [[*steps, *size]],
        "federation": [
            [
                "-m",
                "benchmarks.federation",
                *(["--quick", "--rounds", "5"] if quick else []),
                *older,
                *kept("federation"),
            ]
        ],
        "nvflare": [[*nvflare, "--repeats", "1" if quick else "3"]] if arguments.nvflare else [],
        "deployed": deployed,
        "compression": [["benchmarks/compression.py", *kept("compression")]],
    }


def _main(arguments: argparse.Namespace) -> int:
    if arguments.check:
        return cli.OK if PAGE.read_text(encoding="utf-8") == page(arguments.results) else cli.FAILED
    failed = [] if arguments.page else _measure(arguments)
    write_text(PAGE, page(arguments.results))
    for name in failed:
        print(f"not measured, or missed its target: {name}", file=sys.stderr)
    return cli.FAILED if failed else cli.OK


def _measure(arguments: argparse.Namespace) -> list[str]:
    from benchmarks.steps import names_in

    wanted = names_in(arguments.only, "--only", PARTS)
    failed = []
    for name, lines in commands(arguments).items():
        for line in lines if name in wanted else ():
            began = time.monotonic()
            print(f"\n{' '.join(line)}", flush=True)
            if subprocess.run([sys.executable, *line], cwd=measured.HERE).returncode:
                failed.append(" ".join(line))
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
