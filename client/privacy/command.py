"""python -m client privacy: what this site has spent of its privacy budget, and what a study would cost.

python -m client privacy --site FILE                     budget, spent, left, by study and run
python -m client privacy plan --epsilon E --rounds R     the noise that R rounds need to stay within E
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.site_option import add_site
from dusss_core.errors import UserError
from feddusss import cli

if TYPE_CHECKING:
    from client.privacy.ledger import Entry, Ledger


def add_command(commands: Any) -> None:
    """Add privacy, with its own commands show and plan."""
    text = "what this site has spent of its privacy budget, and what a study would cost"
    privacy = commands.add_parser(
        "privacy",
        help=text,
        description=f"{text[0].upper()}{text[1:]}. Without COMMAND it is `show`.",
        epilog="such as:\n  %(prog)s --site site.yaml\n  %(prog)s plan --epsilon 8 --rounds 40",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = privacy.add_subparsers(required=True, metavar="COMMAND")
    show = cli.add_command(inner, "show", _show, "budget, spent, left, by study and run", "--site site.yaml")
    show.add_argument("--json", action="store_true", help="all of it as JSON")
    add_site(show)
    _add_plan(inner)


def summary(ledger: Ledger) -> dict[str, Any]:
    """What is spent and left: over all, and by study, run and phase.

    `spent_prv` is None for more than one record per patient, `rounds_left` (at the last charge) before the first.

    Raises:
        LedgerError: as `Ledger.entries`.
    """
    from dusss_core.privacy.accounting import epsilon, epsilon_prv, rounds_left

    budget, entries = ledger.budget, ledger.entries()
    spent = [entry.charge for entry in entries]
    used = epsilon(spent, budget.delta, budget.records_per_patient)
    runs: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in entries:
        runs.setdefault((entry.study, entry.run, entry.phase), []).append(entry)
    return {
        "epsilon": budget.epsilon,
        "delta": budget.delta,
        "records_per_patient": budget.records_per_patient,
        "void": ledger.is_void(),
        "spent": used,
        "spent_prv": epsilon_prv(spent, budget.delta) if budget.records_per_patient == 1 else None,
        "left": max(0.0, budget.epsilon - used),
        "rounds_left": rounds_left(budget, spent, spent[-1]) if spent else None,
        "charges": len(entries),
        "runs": [
            {
                "study": study,
                "run": run,
                "phase": phase,
                "rounds": len({entry.round for entry in group}),
                "charges": len(group),
                "last": group[-1].time,
                "alone": epsilon([entry.charge for entry in group], budget.delta, budget.records_per_patient),
            }
            for (study, run, phase), group in runs.items()
        ],
    }


# What was spent.


def _show(arguments: argparse.Namespace) -> int:
    from client.privacy.ledger import Ledger
    from sites.config import load_site

    site = load_site(arguments.site, arguments.overrides)
    if site.privacy.epsilon is None:
        raise UserError(
            f"{arguments.site}: no 'privacy.epsilon': this site asks for no differential privacy",
            "set privacy.epsilon and privacy.records there; docs/privacy.md says what they mean",
        )
    ledger = Ledger(site.state_dir, site.privacy)
    told = summary(ledger)
    if arguments.json:
        print(json.dumps({"ledger": str(ledger.path), "cohort": site.privacy.cohort, **told}))
    else:
        _print(ledger.path, told)
    return cli.FAILED if told["void"] else cli.OK


def _print(path: Path, told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table("study", "run", "phase", box=None, pad_edge=False, header_style="bold")
    for heading in ("rounds", "charges", "epsilon alone"):
        table.add_column(heading, justify="right")
    table.add_column("last (UTC)")
    for run in told["runs"]:
        counts = (str(run["rounds"]), str(run["charges"]), f"{run['alone']:.3f}")
        last = run["last"][:16].replace("T", " ")
        table.add_row(Text(run["study"]), run["run"][:12], run["phase"], *counts, last)
    if told["runs"]:
        console.print(table)
        console.print()
    for label, text in _lines(told):
        console.print(Text(f"{label:<8}{text}"), soft_wrap=True)
    console.print(Text(str(path), style="dim"), soft_wrap=True)
    if told["void"]:
        problem = "VOID: these records were also trained on without privacy, which this ledger cannot speak for"
        console.print(Text(problem, style="red"), soft_wrap=True)


def _lines(told: dict[str, Any]) -> list[tuple[str, str]]:
    k = told["records_per_patient"]
    unit = "a patient" if k == 1 else f"a patient with up to {k} records"
    prv = f" (numerically {told['spent_prv']:.3f})" if told["spent_prv"] is not None else ""
    left = f"{told['left']:.3f}"
    if told["rounds_left"] is not None:
        left += f": {told['rounds_left']} more rounds like the last one"
    return [
        ("budget", f"epsilon {told['epsilon']:g} at delta {told['delta']:g}, for {unit}, over all studies"),
        ("spent", f"{told['spent']:.3f}{prv}, in {told['charges']} rounds that were begun"),
        ("left", left),
    ]


# What a study would cost.


def _add_plan(commands: Any) -> None:
    parser = cli.add_command(
        commands,
        "plan",
        _plan,
        "the smallest privacy.noise_multiplier of a study that keeps its rounds within a budget",
        "--epsilon 8 --rounds 40",
    )
    parser.add_argument("--epsilon", type=float, required=True, metavar="E", help="the budget")
    parser.add_argument("--rounds", type=int, required=True, metavar="R", help="rounds of both phases together")
    parser.add_argument("--steps", type=int, metavar="S", help="steps per round (a study's default)")
    parser.add_argument("--sample-rate", type=float, metavar="Q", help="q of a step's draw (a study's default)")
    parser.add_argument("--delta", type=float, metavar="D", help="(a site's default)")
    parser.add_argument("--records-per-patient", type=int, metavar="K", help="most records of one (a site's default)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    cli.add_common_arguments(parser, overrides=False)


def _fill_in(arguments: argparse.Namespace) -> None:
    """The defaults of what was left out; here, since --help is to read no settings."""
    from dusss_core.config import PrivateTrainingConfig
    from sites.config import PrivacyConfig

    study, site = PrivateTrainingConfig(), PrivacyConfig()
    for name, default in (
        ("steps", study.steps_per_round),
        ("sample_rate", study.sample_rate),
        ("delta", site.delta),
        ("records_per_patient", site.records_per_patient),
    ):
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)


def _plan(arguments: argparse.Namespace) -> int:
    from dusss_core.privacy.accounting import Budget, epsilon, plan
    from dusss_core.privacy.charge import Charge

    _fill_in(arguments)
    for name, value, right in (
        ("epsilon", arguments.epsilon, 0 < arguments.epsilon <= 100),
        ("rounds", arguments.rounds, 1 <= arguments.rounds <= 10**6),
        ("steps", arguments.steps, 1 <= arguments.steps <= 10**6),
        ("sample-rate", arguments.sample_rate, 0 < arguments.sample_rate <= 1),
        ("delta", arguments.delta, 0 < arguments.delta < 1),
        ("records-per-patient", arguments.records_per_patient, 1 <= arguments.records_per_patient <= 100),
    ):
        if not right:
            raise UserError(f"--{name} {value}: out of range", _RANGES[name])
    budget = Budget(arguments.epsilon, arguments.delta, arguments.records_per_patient)
    try:
        noise = plan(budget, arguments.rounds, arguments.steps, arguments.sample_rate)
    except ValueError:
        raise UserError(
            f"epsilon {arguments.epsilon:g} at delta {arguments.delta:g}: no amount of noise is enough for "
            f"{arguments.rounds} rounds of {arguments.steps} steps",
            "ask for fewer rounds or steps, a smaller sample rate, or a larger epsilon",
        ) from None
    charge = Charge(arguments.rounds * arguments.steps, arguments.sample_rate, noise)
    spent = epsilon([charge], budget.delta, budget.records_per_patient)
    if arguments.json:
        print(json.dumps({"noise_multiplier": noise, "epsilon": spent, "steps": charge.steps}))
        return cli.OK
    print(f"privacy.noise_multiplier: {noise:.3f}")
    print(
        f"{arguments.rounds} rounds of {arguments.steps} steps at q = {arguments.sample_rate:g} then cost epsilon "
        f"{spent:.3f} at delta {arguments.delta:g}; twice that noise for privacy.pretrain: groups"
    )
    return cli.OK


_RANGES = {
    "epsilon": "give a number above 0, at most 100",
    "rounds": "give a whole number from 1 to 1000000",
    "steps": "give a whole number from 1 to 1000000",
    "sample-rate": "give a number above 0, at most 1",
    "delta": "give a number between 0 and 1, well below one over the number of patients",
    "records-per-patient": "give a whole number from 1 to 100",
}
