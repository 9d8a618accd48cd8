"""Stands in for private training: the interface of the true trainers, and a charge that follows from the settings."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

from dusss_core.manifest import read_manifest, write_manifest
from dusss_core.privacy.charge import Charge
from tests.server import fake_training

RECORDS = 500


class PrivatePretrainer(fake_training.Pretrainer):
    def __init__(self, *arguments, records, **others):
        assert records == RECORDS
        super().__init__(*arguments, **others)


class PrivateSegmenter(fake_training.Segmenter):
    def __init__(self, *arguments, records, **others):
        assert records == RECORDS
        super().__init__(*arguments, **others)


def install(monkeypatch) -> SimpleNamespace:
    """Put the stand-in where the site looks.

    Returns:
        A handle: `site` makes a site private, `reason` is what `why_not` says.
    """
    import client.work.workbench

    handle = SimpleNamespace(reason=None, site=make_private)
    mechanism = SimpleNamespace(
        charge_of=charge_of,
        why_not=lambda config, phase, records: handle.reason,
        reasons_against=lambda config, phase, records: [handle.reason] if handle.reason else [],
    )
    monkeypatch.setitem(sys.modules, "dusss_core.privacy.mechanism", mechanism)
    trainers = {"pretrain": PrivatePretrainer, "segment": PrivateSegmenter}
    monkeypatch.setattr(client.work.workbench, "_private", trainers.__getitem__)
    return handle


def charge_of(config, phase) -> Charge:
    settings = config.privacy
    return Charge(settings.steps_per_round, settings.sample_rate, settings.noise_multiplier)


def make_private(site_file, epsilon=8.0, **others) -> None:
    """Have the site that `site_file` describes ask for differential privacy, with a patient for each picture."""
    manifest = site_file.parent / "manifest.csv"
    write_manifest(manifest, [replace(record, patient="") for record in read_manifest(manifest)])
    keys = {"epsilon": epsilon, "records": RECORDS, **others}
    told = ", ".join(f"{key}: {value}" for key, value in keys.items())
    site_file.write_text(site_file.read_text() + f"privacy: {{{told}}}\n")
