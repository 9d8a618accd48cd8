"""The page of systems: nothing is left out, counts are exact, and the page is that of the files."""

from __future__ import annotations

import pytest

from benchmarks import systems
from benchmarks.grid.cell import Cell
from benchmarks.grid.methods.presets import METHODS
from dusss_core.objectives import TABLE
from dusss_core.pretraining import TABLE as PRETRAINING
from feddusss import cli, configfile
from tests.dusss_core.conftest import make_config


@pytest.fixture(scope="module")
def rows():
    return [system.row for system in configfile.load(systems.Facts, systems.FACTS).systems]


def test_every_file_of_a_method_of_either_step_has_a_row(rows):
    assert set(rows) <= set(METHODS)
    methods = [METHODS[row]["method"] for row in rows]
    assert set(PRETRAINING) <= {method.get("pretraining", "dusss") for method in methods}
    files = {TABLE[method.get("objective", "dusss")][0] for method in methods}
    assert files == {file for file, _ in TABLE.values()}


def test_decoders_that_only_training_needs_are_trained_and_not_deployed():
    build = systems.count
    from dusss_core.build import build_student

    def counted(objective):
        settings = {"method": {"objective": objective}, "student": {"network": "small_unet"}}
        config = make_config(**settings, image={"size": 32, "channels": 3})
        return build(build_student(config), config)

    plain, cct = counted("mean_teacher_mse"), counted("cct")
    assert plain["trained"] == plain["deployed"] == 1_813_617
    assert cct["deployed"] == 1_813_617 and cct["trained"] == 3_712_212
    assert plain["macs"] == cct["macs"]


def test_a_convolution_costs_its_weights_at_every_place():
    import torch

    config = make_config(image={"size": 32, "channels": 3})
    assert systems.count(torch.nn.Conv2d(3, 5, 3, padding=1), config)["macs"] == 32 * 32 * 3 * 5 * 9


def test_the_page_is_that_of_the_files():
    assert systems.main(["--check"]) == cli.OK


def test_gaps_are_over_seeds_that_both_have_and_sentences_are_told():
    one = {1: systems.Score(60.0, None), 2: systems.Score(70.0, None)}
    cells = {
        ("dusss", 0.05, "centralized"): one,
        ("clip", 0.05, "centralized"): {1: systems.Score(61.0, 65.0)},
        ("bcp", 0.05, "centralized"): {3: systems.Score(50.0, None)},
    }
    pooled = (0.05, "centralized")
    assert systems._ours(cells, "dusss", pooled) == "65.0, 2 seeds"
    assert systems._ours(cells, "clip", pooled) == "61.0 (+1.0); with the sentence 65.0"
    assert systems._ours(cells, "bcp", pooled) == "50.0" and systems._ours(cells, "mcnet", pooled) == ""
    assert systems._ours(cells, "dusss", (0.05, "federated")) == ""


def test_what_is_missing_is_told_as_a_gpu_machine_takes_it_the_most_wanted_first(rows):
    facts = configfile.load(systems.Facts, systems.FACTS)
    everything = systems.missing(facts, {})
    assert everything[0] == "supervised 0.05 centralized 1 cpu" and "bcp_same 0.1 centralized 1 cpu" in everything
    one = {("supervised", 0.05, "centralized"): {1: systems.Score(60.0, None)}}
    assert systems.missing(facts, one) == everything[1:]
    for line in everything:
        method, labels, setting, seed, profile = line.split()
        Cell("qata", float(labels), method, setting, profile, int(seed))
        assert method in METHODS
