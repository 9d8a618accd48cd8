"""What a GPU machine reads from the pack is what the accuracy grid trains on."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from benchmarks.gpu import pack
from benchmarks.gpu.packed import Label, Packed, labelled
from benchmarks.grid.cell import Cell
from benchmarks.grid.hospitals import groups_of_sites
from benchmarks.grid.trial import make_study
from dusss_core.config import TextConfig
from dusss_core.errors import UserError
from dusss_core.manifest import Record, labelled_by_fraction
from dusss_core.text.bank import build_text_bank
from sites.config import load_site
from sites.dataset import SiteData


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_the_pack_holds_the_pictures_of_the_grid(small, share, tmp_path):
    cell = Cell("qata", share, "dusss", "centralized", "gpu", seed=1)
    study = make_study(cell, small.data)
    ((_, group),) = groups_of_sites(cell, study, tmp_path).items()
    site, official = (SiteData(load_site(file), study.image) for file in group.sites)
    found = Packed(small.pack).splits(share)
    for name, own in (("train", site.split("train")), ("val", site.split("val")), ("test", official.split("test"))):
        other = found[name]
        assert len(own) and np.array_equal(own.images, other.images) and np.array_equal(own.masks, other.masks)
        if name == "train":
            assert np.array_equal(own.labelled, other.labelled) and own.labelled.any()
        words = [[s.sentences[i] if i >= 0 else "" for i in s.sentence] for s in (own, other)]
        assert words[0] == words[1]
        if name != "test":
            assert own.ids == other.ids


def test_the_features_need_no_encoder_and_are_the_encoders(small, tmp_path):
    packed = Packed(small.pack)
    packed.unpack(tmp_path)
    config = pack_settings(packed, tmp_path)
    bank = packed.bank(config, tmp_path, torch.device("cpu"))
    own = build_text_bank(packed.sentences, TextConfig())
    where = torch.arange(len(packed.sentences)).repeat(2)
    mirrored, view = where % 2 == 0, where % 4
    for a, b in zip(
        bank.features(where, mirrored=mirrored, view=view),
        own.features(where, mirrored=mirrored, view=view),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_other_wordings_than_the_packs_are_refused(small, tmp_path):
    packed = Packed(small.pack)
    packed.unpack(tmp_path)
    config = pack_settings(packed, tmp_path)
    packed.sentences = (*packed.sentences, "no infection anywhere.")
    with pytest.raises(UserError, match="wordings"):
        packed.bank(config, tmp_path, torch.device("cpu"))


def pack_settings(packed, folder):
    from benchmarks.gpu.train import settings

    return settings(packed, folder, "dusss", 0.25, public_weights=True)


def test_the_public_weights_are_taken(small, tmp_path):
    from dusss_core.build import build_vlm

    packed = Packed(small.pack)
    own = pack_settings(packed, tmp_path)
    without = own.model_copy(update={"vlm": own.vlm.model_copy(update={"weights": None})})
    first = [next(build_vlm(config).image.encoder.parameters()) for config in (own, without)]
    assert not torch.equal(*first)


@pytest.mark.parametrize("share", [0.07, 0.3, 1.0])
def test_a_share_of_the_labels_is_chosen_as_a_site_chooses(share):
    records = [Record(f"r{i}", None, split="train" if i % 5 else "val", labelled=i % 7 > 0) for i in range(100)]
    ranks = pack._ranks(records)
    rows = [Label(r.id, "site", r.split, -1, ranks.get(r.id, -1)) for r in records]
    chosen = {row.id for row, yes in zip(rows, labelled(rows, share), strict=True) if yes}
    assert chosen == labelled_by_fraction(records, share)


def test_every_package_has_its_release():
    constraints = (pack._ROOT / "constraints.txt").read_text()
    assert all(re.search(rf"^{name}==\d", constraints, re.MULTILINE) for name in pack.PACKAGES)


def test_a_pack_that_is_too_large_is_told(small, tmp_path, monkeypatch, capsys):
    line = ["--data", str(small.data), "--out", str(tmp_path), "--no-wheels"]
    monkeypatch.setattr(
        pack, "write_data", lambda data, out, seed: (out / "pictures.safetensors").write_bytes(b"x" * 99)
    )
    assert pack.main(line) == 0
    monkeypatch.setattr(pack, "LARGEST", 50)
    assert pack.main(line) == 2
    assert "pictures.safetensors" in capsys.readouterr().out


def test_without_data_it_says_what_to_set(monkeypatch, capsys):
    monkeypatch.delenv("FEDDUSSS_DATA", raising=False)
    assert pack.main([]) == 2
    assert "FEDDUSSS_DATA" in capsys.readouterr().err
