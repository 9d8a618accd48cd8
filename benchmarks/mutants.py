"""Plants bugs, one at a time, and tells which of them the tests catch.

    python benchmarks/mutants.py                  all of mutants.yaml, some minutes each dozen
    python benchmarks/mutants.py --only aggregat  those whose words or file hold that
    python benchmarks/mutants.py --where server/  those in files below that

A bug is a piece of text of one file and what stands there instead; the tests are those that should notice. They run in
a copy of the last commit, so nothing here is touched. A bug whose text is not found, or stands there twice, is an
error: the file has changed, and the list must follow (tests/benchmarks/test_mutants.py).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import yaml

from dusss_core.errors import UserError
from feddusss import cli

HERE = Path(__file__).parent
ROOT = HERE.parent
CAUGHT, SURVIVED, BROKEN = "caught", "SURVIVED", "no test ran"


@dataclass(frozen=True)
class Mutant:
    """One bug."""

    what: str
    file: str
    old: str
    new: str
    tests: list[str]

    def matches(self, only: str, where: str) -> bool:
        """Whether it is asked for."""
        return only.lower() in f"{self.what} {self.file}".lower() and self.file.startswith(where)


def main(argv: list[str] | None = None) -> int:
    """Plant the bugs that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORD", help="those whose words or file hold it")
    parser.add_argument("--where", default="", metavar="FOLDER", help="those in files below it")
    parser.add_argument("--list", type=Path, default=HERE / "mutants.yaml", help="the bugs (benchmarks/mutants.yaml)")
    cli.add_common_arguments(parser)
    return cli.run(_run, parser, argv)


def _run(arguments: argparse.Namespace) -> int:
    chosen = [mutant for mutant in read(arguments.list) if mutant.matches(arguments.only, arguments.where)]
    if not chosen:
        raise UserError("no bug of the list matches", "leave --only and --where out to plant all")
    found = []
    with _copy() as folder:
        for number, mutant in enumerate(chosen, start=1):
            started = time.monotonic()
            result = planted(folder, mutant)
            found.append((mutant, result))
            seconds = time.monotonic() - started
            print(f"{number:>3}/{len(chosen)}  {result:<11} {seconds:5.0f} s  {mutant.file}: {mutant.what}", flush=True)
    caught = sum(result == CAUGHT for _, result in found)
    print(f"\n{caught} of {len(found)} caught")
    for mutant, result in found:
        if result != CAUGHT:
            print(f"  {result}: {mutant.file}: {mutant.what} ({' '.join(mutant.tests)})")
    return cli.OK if caught == len(found) else cli.FAILED


def read(path: Path) -> list[Mutant]:
    """The bugs of a list.

    Raises:
        UserError: with all bugs whose text does not stand exactly once in its file, or whose tests are not there.
    """
    mutants = [Mutant(**entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8"))]
    if stale := [f"'{mutant.what}': {problem}" for mutant in mutants for problem in _problems(mutant)]:
        raise UserError("\n  ".join([f"{path.name} does not fit the code:", *stale]), "mend the list")
    return mutants


def _problems(mutant: Mutant) -> Iterator[str]:
    file = ROOT / mutant.file
    times = file.read_text(encoding="utf-8").count(mutant.old) if file.is_file() else 0
    if times != 1:
        yield f"its text stands {times} times in {mutant.file}"
    for test in mutant.tests:
        place, _, name = test.partition("::")
        if not (ROOT / place).exists() or (name and f"def {name}(" not in (ROOT / place).read_text(encoding="utf-8")):
            yield f"no {test}"


def planted(folder: Path, mutant: Mutant) -> str:
    """What the tests say of the bug."""
    file = folder / mutant.file
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    finally:
        file.write_text(whole, encoding="utf-8")
    # 1: a test failed; 2: a file could not be imported, which the next command would notice too
    return {0: SURVIVED, 1: CAUGHT, 2: CAUGHT}.get(done.returncode, BROKEN)


@contextmanager
def _copy() -> Iterator[Path]:
    """A checkout of the last commit beside this one, for as long as the block runs."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as parent:
        folder = Path(parent) / "checkout"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(folder)], check=True)
        try:
            yield folder
        finally:
            subprocess.run([*git, "remove", "--force", str(folder)], check=True)


if __name__ == "__main__":
    sys.exit(main())
