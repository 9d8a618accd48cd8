"""Makes the accuracy grid's files of what a GPU machine brought back.

    python -m benchmarks.gpu.grid_results DIR                    into benchmarks/results
    python -m benchmarks.gpu.grid_results DIR --results OTHER

A cell that was measured before is left as it is, and named.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from benchmarks.accuracy import RESULTS
from benchmarks.gpu import grid
from benchmarks.grid.cell import Cell
from dusss_core.errors import UserError
from dusss_core.files import write_json
from feddusss import cli


def main(argv: list[str] | None = None) -> int:
    """Write a file for each line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with results.jsonl")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the cells' files")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_main, parser, argv)


def _main(arguments: argparse.Namespace) -> int:
    file = arguments.folder / grid.RESULTS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise UserError(f"{file}: not there", "name the folder that benchmarks.gpu.grid wrote into") from None
    for line in lines:
        result = json.loads(line)
        cell = Cell(**{field.name: result[field.name] for field in dataclasses.fields(Cell)})
        target = arguments.results / f"{cell.name}.json"
        if target.exists():
            print(f"measured already: {target}")
            continue
        write_json(target, result)
        print(f"written: {target}")
    return cli.OK


if __name__ == "__main__":
    sys.exit(main())
