"""python -m client: one hospital's node.

python -m client --site FILE          take part in studies until stopped
python -m client COMMAND --site FILE  init, audit, report, studies, show, approve, withdraw, status, metrics, privacy
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from client import status, studies
from client.privacy import command as privacy
from client.site_option import add_site
from dusss_core.errors import DATA, UserError
from feddusss import cli

if TYPE_CHECKING:
    from client.node.console import Console
    from sites.config import SiteConfig


def main(argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None) -> int:
    """The command line of a hospital."""
    argv = sys.argv[1:] if argv is None else list(argv)
    return cli.run(lambda arguments: arguments.command(arguments), parser or build_parser(), with_defaults(argv))


def with_defaults(argv: Sequence[str]) -> list[str]:
    """`argv` with the command that is meant where none is named: `run`, and after `privacy` its `show`."""
    argv = list(argv)
    if argv[:1] == ["privacy"]:
        return argv[:1] + _defaulted(argv[1:], "show")
    return _defaulted(argv, "run") if argv else argv


def _defaulted(argv: list[str], command: str) -> list[str]:
    named = argv and not argv[0].startswith("-")
    return argv if named or argv[:1] in (["-h"], ["--help"]) else [command, *argv]


def build_parser(prog: str = "python -m client") -> argparse.ArgumentParser:
    """The command line, as it is called `prog`."""
    parser = argparse.ArgumentParser(
        prog,
        description="One hospital's node. Without COMMAND it is `run`; each has a --help of its own.",
        epilog="The first times:\n"
        "  %(prog)s init --site site.yaml      make the key pair, and send its public half to the coordinator\n"
        "  %(prog)s --site site.yaml --check   look at everything once; change nothing\n"
        "  %(prog)s --site site.yaml           take part in studies until stopped",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = cli.add_command(commands, "run", _run, "take part in studies until stopped", "--site site.yaml --check")
    run.add_argument("--check", action="store_true", help="a preflight; nothing is started or changed")
    add_site(run)

    init = cli.add_command(
        commands, "init", _init, "make this site's key pair and print the public half", "--site site.yaml"
    )
    init.add_argument("--force", action="store_true", help="a new key in place of the old one")
    add_site(init)

    studies.add_commands(commands)
    status.add_commands(commands)

    audit = cli.add_command(
        commands, "audit", _audit, "verify the audit log, and print it", "--site site.yaml --last 20"
    )
    audit.add_argument("--json", action="store_true", help="all of it as JSON")
    audit.add_argument("--last", type=int, metavar="N", help="the last N lines; the whole chain is verified")
    audit.add_argument(
        "--holds",
        action="append",
        default=[],
        metavar="HEAD",
        help="a head that the coordinator has kept (audit_heads.jsonl of a run), which the log must hold",
    )
    add_site(audit)

    report = cli.add_command(
        commands,
        "report",
        _report,
        "a page of this site's pictures with what a finished study's models mark; it never leaves",
        "--site site.yaml --each 5",
    )
    report.add_argument("--study", metavar="NAME", help="of this study; the newest one, if left out")
    report.add_argument("--each", type=int, default=3, metavar="N", help="N worst, median and best (3)")
    report.add_argument("--most", type=int, default=500, metavar="N", help="pictures to look at (500)")
    add_site(report)

    privacy.add_command(commands)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    if arguments.check:
        from client.preflight import check

        return check(arguments.site, arguments.overrides)

    from client.node.supervisor import Supervisor

    site = _site(arguments)
    _check_superlink(site, arguments.site)
    with _alone(site) as held:
        _check_data(arguments)
        site_file = _file_for_messages(arguments, site)
        with _console(site) as console:
            console.say(f"site {site.site}, coordinator {site.superlink.address}; logs in {site.state_dir / 'logs'}")
            _close(site, console)
            with _recorded(site):
                Supervisor(site, site_file, console, lambda: _check_there(site, held)).run()
    return cli.OK


def _init(arguments: argparse.Namespace) -> int:
    from client.door.audit import record
    from client.secure.keys import make_key, public_path

    site = _site(arguments)
    if site.superlink is None or site.superlink.private_key is None:
        raise UserError(f"{arguments.site}: no 'superlink.private_key'", "say there where the key is to be kept")
    line = make_key(site.superlink.private_key, site.site, force=arguments.force)
    record(site.state_dir, "key made", public=" ".join(line.split()[:2]))
    print(f"private key: {site.superlink.private_key} (keep it; it never leaves this machine)", file=sys.stderr)
    print(f"send this line to the coordinator, or {public_path(site.superlink.private_key)}:", file=sys.stderr)
    print(line)
    return cli.OK


def _audit(arguments: argparse.Namespace) -> int:
    from client.door.audit import print_log

    if arguments.last is not None:
        cli.check_positive(last=arguments.last)
    return print_log(_site(arguments), as_json=arguments.json, last=arguments.last, heads=arguments.holds)


def _report(arguments: argparse.Namespace) -> int:
    from client.report.command import report

    cli.check_positive(each=arguments.each, most=arguments.most)
    page = report(_site(arguments), arguments.study, each=arguments.each, most=arguments.most)
    print(f"{page}: it shows patients, keep it at the site")
    return cli.OK


def _site(arguments: argparse.Namespace) -> SiteConfig:
    from sites.config import load_site

    return load_site(arguments.site, arguments.overrides)


def _check_superlink(site: SiteConfig, site_file: Path) -> None:
    from client.secure.keys import read_public_key

    link = site.superlink
    if link is None:
        raise UserError(f"{site_file}: no 'superlink'", "name the coordinator there: address, root_certificates, ...")
    if link.insecure:
        return
    if link.private_key is None:
        raise UserError(f"{site_file}: no 'superlink.private_key'", "name it there, then: python -m client init")
    read_public_key(link.private_key)
    if link.root_certificates is not None and not link.root_certificates.is_file():
        raise UserError(f"{link.root_certificates}: no such file", "it is ca.crt of the kit that the coordinator sent")


@contextmanager
def _alone(site: SiteConfig) -> Iterator[IO[str]]:
    """Hold the site for this process alone.

    Yields:
        The lock file that is held.

    Raises:
        UserError: another process holds it, or its folder cannot be made.
    """
    from dusss_core.files import LOOKED_AT_S, exclusive, make_private

    make_private(site.state_dir)
    with ExitStack() as stack:
        try:
            held = stack.enter_context(exclusive(site.state_dir / "client.lock", LOOKED_AT_S))
        except BlockingIOError:
            raise UserError(
                f"{site.state_dir}: python -m client is running for this site already", "stop that one first"
            ) from None
        except OSError as error:
            raise _unwritable(site, error) from None
        yield held


class _Gone(UserError):
    """The folder of the site's state is not where it was."""


def _check_there(site: SiteConfig, held: IO[str]) -> None:
    """The lock that is held is still the one in `state_dir`: without the folder the client would wait for ever for its
    own processes, and a second one could begin.

    Raises:
        _Gone: it is not.
    """
    try:
        there = os.path.samestat(os.fstat(held.fileno()), (site.state_dir / "client.lock").stat())
    except OSError:
        there = False
    if not there:
        raise _Gone(
            f"{site.state_dir}: was moved, deleted or put back while the client runs",
            "put it back as it was, and start the client again; stop the client before it is moved or restored",
        )


@contextmanager
def _console(site: SiteConfig) -> Iterator[Console]:
    """What a person sees, and the log of it.

    Raises:
        UserError: the log cannot be written.
    """
    from client.node.console import open_console

    with ExitStack() as stack:
        try:
            console = stack.enter_context(open_console(site.state_dir / "logs"))
        except OSError as error:
            raise _unwritable(site, error) from None
        yield console


def _close(site: SiteConfig, console: Console) -> None:
    """What is kept of patients is for this account alone, also where the folder was made by other hands."""
    from dusss_core.files import close_to_others

    try:
        if close_to_others(site.state_dir):
            console.say(f"{site.state_dir}: other accounts of this machine could look into it; closed to them")
    except OSError as error:
        console.say(
            f"{site.state_dir}: other accounts of this machine may look into it, and that could not be mended: "
            f"{error.strerror or error}"
        )


def _unwritable(site: SiteConfig, error: OSError) -> UserError:
    return UserError(
        f"{site.state_dir}: cannot be written to: {error.strerror or error}",
        "make room on its disk, mend the permissions, or mount it for writing, and start the client again",
    )


@contextmanager
def _recorded(site: SiteConfig) -> Iterator[None]:
    """Record the client's start, and how it ended."""
    from client.door.audit import record
    from feddusss import __version__

    record(site.state_dir, "client started", release=__version__, limits=site.limits.model_dump(mode="json"))
    how = "failed"
    try:
        yield
        how = "stopped"
    except (KeyboardInterrupt, SystemExit):
        how = "stopped"
        raise
    except _Gone:
        how = ""  # a line would begin another log in its place
        raise
    finally:
        if how:
            record(site.state_dir, "client ended", how=how)


def _check_data(arguments: argparse.Namespace) -> None:
    """Check that the site can train on its data. In a process of its own, which gives its memory back.

    Raises:
        UserError: it cannot; what is wrong has been printed.
    """
    command = [sys.executable, "-m", "sites", "check", str(arguments.site)]
    command += [part for override in arguments.overrides for part in ("--set", override)]
    check = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if check.returncode:
        print(check.stdout, end="")
        raise UserError(
            f"{arguments.site}: this site's data are not fit to train on",
            "mend what is told above, and start the client again",
            DATA,
        )


def _file_for_messages(arguments: argparse.Namespace, site: SiteConfig) -> Path:
    """The site's own file, read again for each message; with --set, a copy that holds the settings as they are now."""
    from dusss_core.files import write_text
    from feddusss.configfile import dump

    path = arguments.site.resolve()
    if arguments.overrides:
        path = site.state_dir / "flwr" / "site.yaml"
        write_text(path, dump(site))
    if '"' in str(path) or "\\" in str(path):
        raise UserError(f"{path}: Flower cannot be given a path with quotes or backslashes", "rename the folder")
    return path


if __name__ == "__main__":
    sys.exit(main())
