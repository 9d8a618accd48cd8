"""One hospital's data: check it, import it, divide it, or make a synthetic one.

python -m sites check SITE.yaml              is this hospital's data fit to train on? what, row by row, to mend?
python -m sites import lvit DIR              a manifest for the QaTa-COV19 / MoNuSeg layout
python -m sites import folder DIR            a manifest for images/ and masks/
python -m sites partition MANIFEST --config PARTITION.yaml --out DIR
python -m sites synth DIR                    synthetic hospitals
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dusss_core.errors import UserError
from feddusss import cli

if TYPE_CHECKING:
    from dusss_core.manifest import Record


LAYOUTS = {
    "lvit": "Train_Folder, Val_Folder, Test_Folder, each with img/, labelcol/ and *.xlsx",
    "folder": "images/ and masks/, optionally inside train/, val/, test/, and texts.csv",
}
"""NAME of each layout that `import_NAME` of `sites.importers` takes, and what it looks like."""


def build_parser(prog: str = "python -m sites") -> argparse.ArgumentParser:
    """The command line, as it is called `prog`."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="is this hospital's data fit to train on?")
    check.add_argument("site", type=Path, help="site file (YAML)")
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    check.add_argument(
        "--study", type=Path, help="study file (YAML) to check against: its classes, its labels per batch"
    )
    check.add_argument(
        "--html",
        action="store_true",
        help="write check.html beside the site file, with pictures: for the site's own eyes",
    )
    check.add_argument(
        "--left",
        choices=("left", "right"),
        help="half of the picture that 'left' means (default: as most sentences have it)",
    )
    check.add_argument("--workers", type=int, help="processes (default: one for each core)")
    check.add_argument(
        "--fresh", action="store_true", help="look at all pictures anew, not at those that changed alone"
    )
    cli.add_common_arguments(check)
    check.set_defaults(command=_check)

    importing = commands.add_parser("import", help="write a manifest for data that lie in a usual layout")
    layouts = importing.add_subparsers(dest="layout", required=True, metavar="LAYOUT")
    for name, text in LAYOUTS.items():
        layout = layouts.add_parser(name, help=text, description=text)
        layout.add_argument("folder", type=Path, help="folder of the data")
        layout.add_argument("--out", type=Path, help="manifest to write (default: manifest.csv in the folder)")
        layout.add_argument(
            "--columns", type=Path, metavar="TABLE", help="CSV or xlsx with more columns (hospital, ...)"
        )
        layout.add_argument("--key", help="column that names the picture, in either sheet")
        layout.add_argument("--text", help="column of the sentences (default: text, description, report, ...)")
        layout.add_argument(
            "--extract",
            action="append",
            default=[],
            metavar="COLUMN=REGEX",
            help="a column out of the picture's name, such as 'patient=sub-(S\\d+)'",
        )
        layout.add_argument("--force", action="store_true", help="overwrite the manifest")
        cli.add_common_arguments(layout, overrides=False)
        layout.set_defaults(command=_import)

    dividing = commands.add_parser("partition", help="divide one data set into sites")
    dividing.add_argument("manifest", type=Path, help="manifest of the data set")
    dividing.add_argument("--config", type=Path, help="how (YAML, see docs/data.md); or --set alone")
    dividing.add_argument("--out", type=Path, required=True, help="folder for the sites")
    dividing.add_argument("--seed", type=int, default=1, help="seed of every draw (default 1)")
    dividing.add_argument("--force", action="store_true", help="write into a folder that is not empty")
    cli.add_common_arguments(dividing)
    dividing.set_defaults(command=_partition)

    synth = commands.add_parser("synth", help="make synthetic hospitals")
    synth.add_argument("out", type=Path, help="folder for the hospitals")
    synth.add_argument("--hospitals", type=int, help="number of hospitals (default 3)")
    synth.add_argument("--seed", type=int, default=1, help="seed of every picture (default 1)")
    synth.add_argument("--config", type=Path, help="settings (YAML, see sites/synth/config.py)")
    synth.add_argument("--force", action="store_true", help="write into a folder that is not empty")
    cli.add_common_arguments(synth)
    synth.set_defaults(command=_synth)
    return parser


def main(argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None) -> int:
    """Run the command line `argv`; returns the exit code."""
    return cli.run(lambda arguments: arguments.command(arguments), parser or build_parser(), argv)


def _check(arguments: argparse.Namespace) -> int:
    from sites.check import check_site, print_report

    if arguments.workers is not None and arguments.workers < 1:
        raise UserError(f"--workers {arguments.workers}: no number of processes", "give 1 or more, or leave it out")
    report = check_site(
        arguments.site,
        arguments.overrides,
        study=_training(arguments.study) if arguments.study else None,
        left_is=arguments.left,
        fresh=arguments.fresh,
        workers=arguments.workers,
        page=arguments.site.parent / "check.html" if arguments.html else None,
    )
    if arguments.json:
        import json

        print(json.dumps(report.as_dict(), indent=2))
    else:
        print_report(report)
        if arguments.html:
            print(f"{arguments.site.parent / 'check.html'}: it shows patients, keep it at the site")
    return cli.OK if report.fit else cli.USER_MUST_MEND


def _training(path: Path):
    """The settings of a study file that reach a hospital; into the coordinator's sections nobody looks here.

    Raises:
        UserError: as `feddusss.configfile.load`.
    """
    from dusss_core.config import TrainingConfig
    from feddusss import configfile

    class StudyFile(TrainingConfig):
        federation: Any = None
        data: Any = None
        simulation: Any = None
        deployment: Any = None
        output: Any = None

    return configfile.load(StudyFile, path)


def _import(arguments: argparse.Namespace) -> None:
    from sites import importers

    extract = {}
    for item in arguments.extract:
        column, separator, pattern = item.partition("=")
        if not separator or not column or not pattern:
            raise UserError(f"--extract {item}: not of the form COLUMN=REGEX", "such as 'patient=sub-(S\\d+)'")
        extract[column] = pattern
    options = importers.ImportOptions(
        arguments.out, arguments.columns, arguments.key, arguments.text, extract, arguments.force
    )
    result = getattr(importers, f"import_{arguments.layout}")(arguments.folder, options)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{result.manifest}: {len(result.records)} records")


def _partition(arguments: argparse.Namespace) -> None:
    from collections import Counter

    from dusss_core.manifest import SPLITS, read_manifest
    from feddusss import configfile
    from sites.partition import OFFICIAL_TEST, PartitionConfig, partition, write_sites

    values = configfile.read_yaml(arguments.config) if arguments.config else {}
    config = configfile.parse(PartitionConfig, values, str(arguments.config or "partition"), arguments.overrides)
    records = read_manifest(arguments.manifest)
    sites = partition(records, config, arguments.seed)
    _refuse_full(arguments.out, arguments.force)
    for file, (name, members) in zip(write_sites(arguments.out, sites), sites.items(), strict=True):
        splits = Counter(record.split for record in members)
        counts = ", ".join(f"{split} {splits[split]}" for split in SPLITS if splits[split])
        print(f"{name}: {len(members)} records ({counts}), {file}")
    for split in ("val", "test"):
        lacking = [name for name, members in sites.items() if name != OFFICIAL_TEST and not _has(members, split)]
        if lacking and not (split == "test" and OFFICIAL_TEST in sites):
            print(
                f"warning: no {split} records: {', '.join(lacking)}; --set hold_out.{split}=0.2 draws some by patient",
                file=sys.stderr,
            )
    others = sorted(path.parent.name for path in arguments.out.glob("*/site.yaml") if path.parent.name not in sites)
    if others:
        print(
            f"warning: {arguments.out}: sites of an earlier division are still there, and a study on this folder takes "
            f"them too; remove them: {', '.join(others)}",
            file=sys.stderr,
        )


def _has(members: Sequence[Record], split: str) -> bool:
    return any(record.split == split for record in members)


def _synth(arguments: argparse.Namespace) -> None:
    from feddusss import configfile
    from sites.config import write_site
    from sites.synth.config import SynthConfig
    from sites.synth.hospitals import write_hospitals

    values = configfile.read_yaml(arguments.config) if arguments.config else {}
    if arguments.hospitals is not None:
        values["hospitals"] = arguments.hospitals
    config = configfile.parse(SynthConfig, values, str(arguments.config or "synth"), arguments.overrides)
    _refuse_full(arguments.out, arguments.force)
    for manifest in write_hospitals(arguments.out, config, arguments.seed):
        print(write_site(manifest.parent, manifest.parent.name))


def _refuse_full(folder: Path, force: bool) -> None:
    if not force and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty", "name a new folder, or write into it with --force")


if __name__ == "__main__":
    sys.exit(main())
