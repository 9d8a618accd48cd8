"""The option that every command of a hospital has: which site."""

from __future__ import annotations

import argparse
from pathlib import Path

from feddusss import cli


def add_site(parser: argparse.ArgumentParser) -> None:
    """Add --site, and what all command lines share."""
    parser.add_argument("--site", type=Path, required=True, metavar="FILE", help="this site's own file")
    cli.add_common_arguments(parser)
