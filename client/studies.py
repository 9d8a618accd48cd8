"""python -m client studies|show|approve|withdraw: a person at this hospital says yes or no to a study.

python -m client studies --site FILE                     what has asked to run here, and what was approved
python -m client show STUDY --site FILE                  a study as a person reads it, and what has changed
python -m client approve STUDY DIGEST --site FILE        let it run; DIGEST is the one that `show` prints
python -m client withdraw STUDY --site FILE              let it run no longer
"""

from __future__ import annotations

import argparse
import getpass
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from client.site_option import add_site
from dusss_core.errors import UserError
from feddusss import cli

if TYPE_CHECKING:
    from client.consent.book import Book, Kept
    from client.consent.proposal import Difference
    from sites.config import SiteConfig

_SHOWN_DIGITS = 12
_DIGITS = 64
"""Of a digest. `approve` takes no fewer: whoever sends proposals can make two that begin with the same dozen digits,
and push the one that was looked at out of the book by sending more."""
_MOST_PARTNERS = 30


def add_commands(commands: Any) -> None:
    """Add studies, show, approve and withdraw."""
    listed = cli.add_command(
        commands, "studies", _studies, "what has asked to run here, and what was approved", "--site site.yaml"
    )
    show = cli.add_command(
        commands, "show", _show, "a study as a person reads it, and what has changed", "lungs --site site.yaml"
    )
    show.add_argument("study", metavar="STUDY", help="its name")
    show.add_argument("digest", nargs="?", metavar="DIGEST", help="one of several that asked under that name")
    show.add_argument("--all", action="store_true", help="also the settings that have their default")
    approve = cli.add_command(commands, "approve", _approve, "let a study run", "lungs DIGEST --site site.yaml")
    approve.add_argument("study", metavar="STUDY", help="its name")
    approve.add_argument("digest", metavar="DIGEST", help="the one that `show` prints, all of it")
    withdraw = cli.add_command(commands, "withdraw", _withdraw, "let a study run no longer", "lungs --site site.yaml")
    withdraw.add_argument("study", metavar="STUDY", help="its name")
    for parser in (approve, withdraw):
        parser.add_argument("--by", default=None, metavar="NAME", help="who says so (the account of this process)")
    for parser in (listed, show):
        parser.add_argument("--json", action="store_true", help="all of it as JSON")
    for parser in (listed, show, approve, withdraw):
        add_site(parser)


# What asked.


def _studies(arguments: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    site, book = _opened(arguments)
    kept = book.all()
    if arguments.json:
        print(json.dumps([_as_json(one) for one in kept]))
        return cli.OK
    console = Console(highlight=False)
    if not kept:
        console.print(f"no study has asked to run at {site.site}", markup=False)
    else:
        table = Table("study", "digest", "asked (UTC)", "", box=None, pad_edge=False, header_style="bold")
        for one in kept:
            told = Text(_state(one), style="green" if one.stands else "yellow")
            table.add_row(one.proposal.study, one.digest[:_SHOWN_DIGITS], _moment(one.asked), told)
        console.print(table)
    if not site.limits.approval:
        console.print("this site does not ask a person: limits.approval is false", style="yellow", markup=False)
    return cli.OK


def _show(arguments: argparse.Namespace) -> int:
    from client.consent.book import changes

    site, book = _opened(arguments)
    one = _chosen(book, arguments.study, arguments.digest)
    before = changes(one, book)
    if arguments.json:
        changed = [vars(change) for change in before[1]] if before else None
        print(json.dumps({**_as_json(one), "settings": one.settings, "changes": changed}))
        return cli.OK
    for line in _page(site, one, before, every=arguments.all):
        print(line)
    if not one.stands:
        print(f"\nto let it run:\n  python -m client approve {one.proposal.study} {one.digest} --site {arguments.site}")
    return cli.OK


# What is said to it.


def _approve(arguments: argparse.Namespace) -> int:
    from client.door.audit import record

    site, book = _opened(arguments)
    one = _chosen(book, arguments.study, arguments.digest)
    if len(arguments.digest) < _DIGITS:
        raise UserError(
            f"{arguments.digest}: fewer than {_DIGITS} digits, and another proposal may begin with them",
            f"copy the one that is printed by: python -m client show {arguments.study} --site {arguments.site}",
        )
    if one.stands:
        print(f"{one.proposal.study} was approved before: {_state(one)}")
        return cli.OK
    by = _by(arguments)
    # recorded first: what is not in the log is not approved
    record(site.state_dir, "study approved", study=one.proposal.study, digest=one.digest, by=by)
    book.approve(one, by)
    print(f"{one.proposal.study} ({one.digest[:_SHOWN_DIGITS]}) may run at {site.site} from its next message on")
    if not site.limits.approval:
        print("note: limits.approval is false in this site's file, so it could run before too")
    return cli.OK


def _withdraw(arguments: argparse.Namespace) -> int:
    from client.door.audit import record

    site, book = _opened(arguments)
    standing = [one for one in book.all() if one.proposal.study == arguments.study and one.stands]
    if not standing:
        raise UserError(
            f"{arguments.study}: no approval of it stands at {site.site}",
            f"what is approved is listed by: python -m client studies --site {arguments.site}",
        )
    for one in standing:
        book.withdraw(one)  # first: a log that cannot be written must not keep it running
        record(site.state_dir, "approval withdrawn", study=one.proposal.study, digest=one.digest, by=_by(arguments))
    print(f"{arguments.study} may no longer run at {site.site}; a round that is being worked on now still ends")
    return cli.OK


# A study as a person reads it.


def _page(site: SiteConfig, one: Kept, before: tuple[Kept, list[Difference]] | None, *, every: bool) -> Iterator[str]:
    from dusss_core.config import TrainingConfig
    from feddusss import __version__
    from feddusss.configfile import flat

    proposal, terms = one.proposal, one.proposal.terms
    yield f"study     {proposal.study}, asked {_moment(one.asked)} UTC, {_state(one)}"
    yield f"digest    {one.digest}"
    yield f"release   {_printable(terms.release)}; this site's is {__version__}"
    names = sorted(terms.partners.items())
    yield f"partners  {len(names) or 'not told'}, of which each round needs {terms.min_sites} at least"
    yield from (f"          {name}  {_printable(key) or 'has sent no key yet'}" for name, key in names[:_MOST_PARTNERS])
    if len(names) > _MOST_PARTNERS:
        yield f"          and {len(names) - _MOST_PARTNERS} more (--json has them)"
    yield from _listed("leaves    ", _leaving(site, one))
    yield from _listed("stays     ", _staying())
    if before is not None:
        yield ""
        yield f"changed since {_state(before[0])} ({before[0].digest[:_SHOWN_DIGITS]}):"
        for change in before[1] or ():
            free = "  (needs no new yes)" if change.free else ""
            yield f"  {change.key}: {_value(change.before)} -> {_value(change.after)}{free}"
        if not before[1]:
            yield "  nothing"
    yield ""
    yield "every setting:" if every else "settings that are not the default (--all: every one):"
    defaults = {} if every else flat(TrainingConfig().model_dump(mode="json"))
    for key, value in sorted(one.settings.items()):
        if every or key.startswith("federation.") or key not in defaults or defaults[key] != value:
            yield f"  {key}: {_value(value)}"


def _listed(title: str, items: Sequence[str]) -> Iterator[str]:
    for i, item in enumerate(items):
        yield f"{title if i == 0 else ' ' * len(title)}{item}"


def _leaving(site: SiteConfig, one: Kept) -> list[str]:
    """What of this site leaves under the study, by its settings and the site's own file."""
    training, federation = one.proposal.training, one.proposal.terms.federation
    secure, private = federation.get("secure_aggregation") is True, site.privacy.epsilon is not None
    parts = ["the student"] + (["the vision-language model"] if training.method.text_mask else [])
    weights = f"in each round the trained weights of {' and of '.join(parts)}"
    if secure:
        weights += ", inside a sum over several hospitals alone"
    if training.local_norm:
        weights += "; normalisation layers stay"
    if private:
        return [
            f"{weights}, with noise (epsilon {site.privacy.epsilon:g}, delta {site.privacy.delta:g})",
            "constants that this site's file declares: no other figure",
        ]
    figures = [
        "the numbers of its pictures: with masks, without, with sentences, for validation, for test",
        "means over its pictures: losses, Dice, IoU; over its test pictures once more at the end; seconds",
    ]
    if training.personal.kind != "none":
        figures.append(f"means of its own student ({training.personal.kind})")
    return [weights, *figures]


def _staying() -> list[str]:
    return [
        "pictures, masks, sentences, names of records and patients",
        "the mean teacher, moments of the optimiser, text-guided masks, the audit log",
    ]


# Small things.


def _opened(arguments: argparse.Namespace) -> tuple[SiteConfig, Book]:
    from client.consent.book import Book
    from sites.config import load_site

    site = load_site(arguments.site, arguments.overrides)
    return site, Book(site.state_dir)


def _chosen(book: Book, study: str, digest: str | None) -> Kept:
    """The proposal of that name and digest; without one the newest that waits, else the newest."""
    named = [one for one in book.all() if one.proposal.study == study]
    if not named:
        known = ", ".join(sorted({one.proposal.study for one in book.all()})) or "none"
        raise UserError(f"{study}: no such study has asked here (there are: {known})", "check the name")
    if digest is None:
        return next((one for one in reversed(named) if not one.stands), named[-1])
    found = [one for one in named if one.digest.startswith(digest.lower())]
    if len(found) != 1:
        known = ", ".join(one.digest[:_SHOWN_DIGITS] for one in named)
        raise UserError(
            f"{digest}: {'no' if not found else 'more than one'} proposal of {study} has this digest",
            f"look at what asks with: python -m client show {study} --site FILE; those that are kept: {known}",
        )
    return found[0]


def _by(arguments: argparse.Namespace) -> str:
    if arguments.by is not None:
        return _printable(arguments.by)[:100]
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown account"


def _state(one: Kept) -> str:
    if one.approval is None:
        return "waits for approval"
    told = f"approved by {_printable(one.approval.by)} on {_moment(one.approval.at)} UTC"
    return f"{told}, withdrawn on {_moment(one.approval.withdrawn)} UTC" if one.approval.withdrawn else told


def _as_json(one: Kept) -> dict[str, Any]:
    return {
        "study": one.proposal.study,
        "digest": one.digest,
        "asked": one.asked,
        "approval": vars(one.approval) if one.approval else None,
        "stands": one.stands,
        "release": one.proposal.terms.release,
        "partners": one.proposal.terms.partners,
    }


def _moment(iso: str) -> str:
    return iso[:16].replace("T", " ")


def _value(value: Any) -> str:
    return _printable(value if isinstance(value, str) else json.dumps(value))


def _printable(text: str) -> str:
    """One short line, whatever a message put into it."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= 200 else f"{line[:200]}…"
