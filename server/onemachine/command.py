"""python -m server federation: the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from feddusss import cli


def add_command(commands: Any) -> None:
    """Add federation."""
    federation = commands.add_parser(
        "federation",
        help="a real SuperLink and three real hospitals' clients on this machine, for one short study",
        description="Starts a SuperLink with TLS and keys and a `python -m client` for each of three synthetic "
        "hospitals, runs the preset `federation` to its report, and ends them all.",
    )
    federation.add_argument("--prepare", action="store_true", help="start no study: print how to start all by hand")
    federation.add_argument("--out", type=Path, help="folder of all that is written (runs/federation)")
    federation.add_argument("--port", type=int, help="of the SuperLink, on loopback (9091)")
    cli.add_resume_or_force(federation, "go on with the study that is in --out", "delete what is in --out")
    cli.add_common_arguments(federation)
    federation.set_defaults(command=_federation)


def _federation(arguments: argparse.Namespace) -> int:
    from server.onemachine.federation import prepare_only, run_federation
    from server.report.progress import make_reporter

    common = {"force": arguments.force, "reporter": make_reporter()}
    if arguments.prepare:
        return prepare_only(arguments.out, arguments.port, arguments.overrides, **common)
    return run_federation(arguments.out, arguments.port, arguments.overrides, resume=arguments.resume, **common)
