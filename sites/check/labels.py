"""How many records there are of each kind: splits, labels, sentences."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dusss_core.config import TrainingConfig
from dusss_core.manifest import SPLITS, Record, labelled_by_fraction
from sites.check.report import Report
from sites.config import SiteConfig

FEW_LABELS = 4
"""Labelled training pictures below which a site learns next to nothing from its masks."""


def check_counts(report: Report, site: SiteConfig, records: Sequence[Record], study: TrainingConfig | None) -> None:
    """Enough records in each split, and enough labels for the study."""
    of = {name: [record for record in records if record.split == name] for name in SPLITS}
    labelled = len(labelled_by_fraction(records, site.data.label_fraction))
    n = {name: len(members) for name, members in of.items()}
    report.figures["splits"] = n
    report.figures["train"] = {
        "labelled": labelled,
        "unlabelled": n["train"] - labelled,
        "with_text": sum(bool(record.text) for record in of["train"]),
    }
    report.say("ok", "splits", ", ".join(f"{name} {count}" for name, count in n.items()))
    for name in ("val", "test"):
        if n[name] and not any(record.mask for record in of[name]):
            report.say(
                "warning", name, f"none of its {n[name]} records has a mask", "evaluation needs masks", "no_masks"
            )
    if not site.limits.phases:
        if not n["test"]:
            report.say(
                "error",
                "test",
                "the site only evaluates, and has no test records",
                "add some, or allow phases",
                "no_test",
            )
        return
    if n["train"] == 0:
        report.say(
            "error",
            "train",
            "no training records",
            "give some records the split train, or set limits.phases: []",
            "no_train",
        )
        return
    if n["train"] == 1:
        report.say(
            "warning", "train", "a single training record", "add more: it will weigh next to nothing", "one_record"
        )
    _check_labels(report, labelled, n["train"], study)
    for name, what in (
        ("val", "no validation records: the site cannot tell when to stop"),
        ("test", "no test records: the site is absent from the evaluation"),
    ):
        if n[name] == 0:
            report.say("warning", name, what, "hold some out, by patient", f"no_{name}")
    _check_patients(report, records)
    if not any(record.patient for record in records):
        report.say(
            "warning",
            "patients",
            "no column patient: a patient in two splits cannot be seen",
            "add it if you can",
            "no_patients",
        )


def _check_patients(report: Report, records: Sequence[Record]) -> None:
    """Keys that differ in case, blanks and signs alone are one patient, who may be in two splits unseen."""
    alike: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.patient:
            alike["".join(filter(str.isalnum, record.patient.casefold()))][record.patient].append(record)
    odd = [of for of in alike.values() if len(of) > 1]
    torn = [of for of in odd if len({record.split for members in of.values() for record in members}) > 1]
    for level, what, groups in (
        (
            "warning",
            "[belongs|belong] to patients whose keys differ in case, blanks or signs alone, in different splits",
            torn,
        ),
        (
            "note",
            "[belongs|belong] to patients whose keys differ in case, blanks or signs alone",
            [o for o in odd if o not in torn],
        ),
    ):
        rows = [record.row for of in groups for members in of.values() for record in members]
        report.say_rows(
            level, "patients", f"{{n}} [record|records] {what}", "write each patient in one way", "patient_key", rows
        )


def _check_labels(report: Report, labelled: int, train: int, study: TrainingConfig | None) -> None:
    if labelled == 0:
        report.say(
            "warning",
            "labels",
            "no labelled training record: the site trains on pseudo-labels",
            "label some pictures, or raise data.label_fraction",
            "no_labels",
        )
        return
    if labelled == train:
        report.say(
            "warning",
            "labels",
            "no unlabelled training record: the site trains supervised only",
            "nothing to mend; add pictures without masks if there are any",
            "all_labelled",
        )
    else:
        report.say("ok", "labels", f"{labelled} labelled and {train - labelled} unlabelled training records")
    wanted = FEW_LABELS
    if study is not None:
        wanted = max(wanted, round(study.segment.batch * study.segment.labelled_share))
    if labelled < min(wanted, train):
        of_study = f": the study puts {wanted} of them into each batch" if wanted > FEW_LABELS else ""
        report.say(
            "warning",
            "labels",
            f"only {labelled} labelled training record{'s' * (labelled != 1)}{of_study}",
            "label more pictures, of different patients",
            "few_labels",
        )
