"""What a federation is compared with: other ways to train, on the same training pictures, for the same test."""

from __future__ import annotations

import pytest

from dusss_core.config import PAPER_BEYOND_METHOD, PRESETS, MethodConfig
from dusss_core.manifest import read_manifest
from server.runs.runfolder import read_study
from server.simulation.compare import METHODS, with_preset
from server.simulation.simulate import simulate
from tests.server.conftest import HOSPITALS, make_study


def test_every_method_is_trained_on_the_training_pictures_alone(fake, quiet, tmp_path, monkeypatch):
    trained = {}

    def watched(kind):
        build = kind.__init__

        def init(self, config, site, train, val, *others, **settings):
            trained.setdefault(site, set()).add((train.ids, val.ids))
            build(self, config, site, train, val, *others, **settings)

        monkeypatch.setattr(kind, "__init__", init)

    watched(fake.Pretrainer)
    watched(fake.Segmenter)
    simulate(make_study(), tmp_path, reporter=quiet, compare_with="local,centralized")

    def pictures(site, split, prefix=""):
        records = read_manifest(tmp_path / "sites" / site / "manifest.csv")
        return tuple(prefix + record.id for record in records if record.split == split)

    names = [hospital["name"] for hospital in HOSPITALS]
    pooled = [sum((pictures(name, split, f"{name}/") for name in names), ()) for split in ("train", "val")]
    assert trained == {
        **{name: {(pictures(name, "train"), pictures(name, "val"))} for name in names},
        "centralized": {tuple(pooled)},
    }
    assert all(pictures(name, "test") for name in names)


def other_way_round(preset):
    """The switches of a study that differs from the preset wherever it can."""
    wanted = MethodConfig(preset=preset)
    return {name: not value for name, value in wanted.model_dump().items() if isinstance(value, bool)}


@pytest.mark.parametrize("preset", [method for method in METHODS if method in PRESETS])
def test_a_preset_that_is_compared_has_its_own_switches_whatever_the_study_sets(preset):
    named = {"teacher", "text_mask", "preset", *PRESETS[preset]}
    study = make_study(method=other_way_round(preset))
    method = with_preset(study, preset).method
    assert method.model_dump(include=named) == MethodConfig(preset=preset).model_dump(include=named)
    # what it does not name is the study's, so that the figures differ by the preset alone
    assert method.model_dump(exclude=named) == study.method.model_dump(exclude=named)
    beyond = PAPER_BEYOND_METHOD if preset == "paper" else {}
    others = {"method": True, **{section: set(literal) for section, literal in beyond.items()}}
    assert with_preset(study, preset).model_dump(exclude=others) == study.model_dump(exclude=others)


def test_the_paper_that_is_compared_is_the_paper_beyond_the_method_too():
    compared, paper = with_preset(make_study(), "paper"), make_study(method={"preset": "paper"})
    assert compared == paper


def test_a_preset_is_compared_as_a_federation_of_its_own_settings(fake, quiet, tmp_path):
    study = make_study(method={"teacher": False, "text_mask": True})
    simulate(study, tmp_path, reporter=quiet, compare_with="mean_teacher")
    federated, _ = read_study(tmp_path)
    compared, _ = read_study(tmp_path / "compare" / "mean_teacher")
    assert (federated.method.teacher, federated.method.text_mask) == (False, True)
    assert (compared.method.teacher, compared.method.text_mask) == (True, False)
