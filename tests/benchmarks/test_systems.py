"""The page of systems: nothing is left out, counts are exact, and the page is that of the files."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from benchmarks import system_costs, systems
from benchmarks.grid.cell import DATASETS, Cell
from benchmarks.grid.methods.presets import METHODS
from dusss_core.config.training import merged
from dusss_core.objectives import TABLE
from dusss_core.pretraining import TABLE as PRETRAINING
from feddusss import cli, configfile
from tests.dusss_core.conftest import make_config

ROOT = Path(__file__).parents[2]


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
    build = system_costs.count
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
    assert system_costs.count(torch.nn.Conv2d(3, 5, 3, padding=1), config)["macs"] == 32 * 32 * 3 * 5 * 9


def test_a_site_sends_weights_and_statistics_of_normalisation_and_no_frozen_weight():
    import torch

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.Linear(5, 2))
    network[2].requires_grad_(False)
    # mean and variance of five channels, and how many batches they are of
    assert system_costs.sent(network) == 4 * (3 * 5 * 9 + 5 + 2 * 5 + 2 * 5) + 8


@pytest.mark.parametrize("row", ["supervised", "dusss"])
def test_memory_is_that_of_a_process_of_its_own_for_each_step(row, tmp_path, monkeypatch):
    monkeypatch.setattr(system_costs, "ProcessPoolExecutor", _Pool)
    monkeypatch.setattr(system_costs, "_peak", lambda row, phase, folder: f"{row} {phase}")
    found = system_costs._memory(row, tmp_path)
    assert found == {"memory": f"{row} segment", **({"memory_1": f"{row} pretrain"} if row == "dusss" else {})}


class _Pool(ThreadPoolExecutor):
    def __init__(self, workers, mp_context):
        assert (workers, mp_context.get_start_method()) == (1, "spawn")
        super().__init__(workers)


def test_costs_of_both_steps_stand_side_by_side_and_others_stay_as_they_were(tmp_path, monkeypatch):
    counted = tmp_path / "counted.json"
    facts = systems.Facts(systems=[_system("supervised"), _system("clip")])
    old = {"trained": 2e6, "deployed": 1e6, "macs": 5e9, "step": 1.0, "sent": 8e6, "memory": 1e9}
    rows = {"supervised": old, "clip": {**old, "step": 1.2, "step_1": 3.0, "sent_1": 3e6}}
    counted.write_text(json.dumps({"measured": {"steps": {"date": "then"}}, "rows": rows}))
    monkeypatch.setattr(systems, "COUNTED", counted)
    new = {"supervised": {"memory": 0.6e9}, "clip": {"memory": 0.7e9, "memory_1": 0.9e9}}
    monkeypatch.setattr(systems, "measure", lambda rows, parts, repeats: new)
    systems._count(facts, ["memory"], 5)
    after = json.loads(counted.read_text())
    assert after["measured"]["steps"] == {"date": "then"} and "commit" in after["measured"]["memory"]
    text = systems.table(facts, after["rows"])
    assert "| 2.00 / 1.00 | 5.00 |  | 1.0 | 8.0 | 0.60 |" in text
    assert "| 2.00 / 1.00 | 5.00 |  | 1.2 (3.0) | 8.0 (3.0) | 0.70 (0.90) |" in text


def _system(row: str) -> systems.System:
    said = dict.fromkeys(("what", "published", "stays", "text", "licence", "departures"), "")
    return systems.System(name=row, row=row, **said)


def test_the_page_is_that_of_the_files():
    assert systems.main(["--check"]) == cli.OK


def test_gaps_are_over_seeds_that_both_have_and_sentences_are_told():
    pooled = systems._FIRST
    one = {1: systems.Score(60.0, None), 2: systems.Score(70.0, None)}
    cells = {
        ("dusss", pooled): one,
        ("clip", pooled): {1: systems.Score(61.0, 65.0)},
        ("bcp", pooled): {3: systems.Score(50.0, None)},
    }
    assert systems._ours(cells, "dusss", pooled) == "65.0, 2 seeds"
    assert systems._ours(cells, "clip", pooled) == "61.0 (+1.0); with the sentence 65.0"
    assert systems._ours(cells, "bcp", pooled) == "50.0" and systems._ours(cells, "mcnet", pooled) == ""
    assert systems._ours(cells, "dusss", systems._SITES) == ""


def test_what_is_missing_is_told_as_a_gpu_machine_takes_it_the_most_wanted_first(rows):
    facts = configfile.load(systems.Facts, systems.FACTS)
    everything = systems.missing(facts, {})
    assert everything[0] == "supervised 0.05 centralized 1 cpu" and "bcp_same 0.1 centralized 1 cpu" in everything
    one = {("supervised", systems._FIRST): {1: systems.Score(60.0, None)}}
    assert systems.missing(facts, one) == everything[1:]
    for line in everything:
        method, labels, setting, seed, profile = line.split()
        Cell("qata", float(labels), method, setting, profile, int(seed))
        assert method in METHODS


def test_hospitals_stand_beside_the_sites_of_chest_x_rays_with_their_own_federation(tmp_path):
    def cell(name, method, dice):
        file = tmp_path / f"{name}-seed1.json"
        file.write_text(json.dumps({"method": method, "seed": 1, "test": {"dice": dice}}))

    cell("polypgen-cpu_imagenet-10pct-supervised_fixbn_estimated-federated", "supervised_fixbn_estimated", 0.5)
    cell("polypgen-cpu_imagenet-10pct-supervised_polypgen-federated", "supervised_polypgen", 0.75)
    cell("polypgen-cpu_imagenet-10pct-supervised-federated", "supervised", 0.4)
    cell("qata-cpu-10pct-supervised-centralized", "supervised", 0.6)
    cells = systems.read_cells(tmp_path)
    assert {column.head: scores[1].dice for (_, column), scores in cells.items()} == {
        "10 %": 60.0,
        "PolypGen, 10 %, six hospitals": 50.0,
        "the same, more passes": 75.0,
    }
    assert {row for row, _ in cells} == {"supervised"}


@pytest.mark.parametrize("column", [systems._HOSPITALS, systems._PASSES], ids=lambda column: column.federation)
def test_every_system_has_a_row_in_the_federation_of_six_hospitals(rows, column):
    on_the_students_network = [f"{row}_same" if f"{row}_same" in METHODS else row for row in rows]
    assert {f"{row}{column.federation}" for row in on_the_students_network} <= set(METHODS)


def test_rows_with_more_passes_are_the_preset_of_polypgen():
    preset = yaml.safe_load((ROOT / "configs" / "polypgen.yaml").read_text(encoding="utf-8"))
    ours = merged(DATASETS["polypgen"]["cpu_imagenet"], METHODS["dusss_polypgen"])
    assert ours.pop("method") == {"preset": "dusss"}  # the default
    assert {key: preset[key] for key in ours} == ours
