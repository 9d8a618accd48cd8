"""The privacy budget: whether the ledger is whole, and what is left in it. Reads only; nothing is opened or charged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from client.privacy.ledger import HEAD, Ledger
from dusss_core.errors import UserError
from dusss_core.manifest import read_manifest
from sites.check import Finding
from sites.config import SiteConfig

SUBJECT = "privacy"


def budget(site: SiteConfig) -> Iterator[Finding]:
    """The ledger, and what the site's file declares of its patients.

    Raises:
        LedgerError: the ledger is missing, damaged, an older copy, or of another delta or cohort; with what to do.
    """
    ledger = Ledger(site.state_dir, site.privacy)
    if site.privacy.epsilon is None:
        yield _without_budget(site, ledger)
        return
    entries = ledger.entries()
    if ledger.is_void():
        yield Finding(
            "error",
            SUBJECT,
            "VOID: these records were also trained on without privacy, which no budget can take back",
            "take part with patients who were never trained on, and a state_dir of their own; "
            "or without privacy: remove privacy.epsilon",
        )
    else:
        yield _told(ledger, entries)
    yield from _declared(site)


def _without_budget(site: SiteConfig, ledger: Ledger) -> Finding:
    if ledger.path.exists() or (site.state_dir / HEAD).exists():
        return Finding(
            "warning",
            SUBJECT,
            f"{ledger.path} is there, but this site's file sets no privacy.epsilon: the next round is trained without "
            "privacy, and voids the ledger for good",
            "set privacy.epsilon and privacy.records again, as they were",
        )
    return Finding("ok", SUBJECT, "no budget is set (privacy.epsilon): this site trains without differential privacy")


def _told(ledger: Ledger, entries: list) -> Finding:
    from dusss_core.privacy.accounting import epsilon, rounds_left

    budget, charges = ledger.budget, [entry.charge for entry in entries]
    whole = f"epsilon {budget.epsilon:g} at delta {budget.delta:g}"
    if not charges:
        return Finding("ok", SUBJECT, f"{whole}; nothing is spent yet")
    spent = epsilon(charges, budget.delta, budget.records_per_patient)
    more = rounds_left(budget, charges, charges[-1])
    text = (
        f"{whole}; the ledger is whole: {spent:.3f} is spent in {len(charges)} rounds, "
        f"{max(0.0, budget.epsilon - spent):.3f} is left"
    )
    if more:
        return Finding("ok", SUBJECT, f"{text}: {more} more like the last one")
    return Finding(
        "warning",
        SUBJECT,
        f"{text}: too little for another round like the last one, which this site would decline",
        "leave it so; or raise privacy.epsilon, if those who answer for the data decide so",
    )


def _declared(site: SiteConfig) -> Iterator[Finding]:
    """What a private site refuses to train on, as it would say itself."""
    if site.data.label_fraction < 1:
        yield Finding(
            "error",
            SUBJECT,
            "data.label_fraction draws masks by rank, so that one picture decides over another's",
            "set it to 1, and choose the masks in the manifest's column 'labelled'",
        )
    try:
        records = read_manifest(site.data.manifest)
    except UserError:
        return  # the check of the data tells
    pictures = Counter(record.patient for record in records if record.split == "train" and record.patient)
    most = max(pictures.values(), default=0)
    if most > site.privacy.records_per_patient:
        yield Finding(
            "error",
            SUBJECT,
            f"a patient has {most} training pictures, and privacy.records_per_patient is "
            f"{site.privacy.records_per_patient}",
            "choose among that patient's pictures in the manifest, or raise privacy.records_per_patient, which costs "
            "more of the budget",
        )
