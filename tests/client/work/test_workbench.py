"""What a process keeps between messages is bounded by its memory, and what is dropped changes no bit."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch

from client.answer import answer
from client.door import machine
from client.work import workbench
from dusss_core.phases import Phase
from dusss_core.training import initial_shared
from feddusss import wire
from server.simulation.simulate import simulate
from sites.config import LimitsConfig, load_site
from tests.client.conftest import declined, make_content, tensors_of
from tests.server.conftest import finals, make_study, quiet

__all__ = ["quiet"]

UNLIKE = [
    {"name": "alder", "train": 16, "val": 6, "test": 6, "label_fraction": 0.5},
    {"name": "birch", "train": 8, "val": 6, "test": 6, "label_fraction": 1.0},
    {"name": "cedar", "train": 12, "val": 6, "test": 6, "label_fraction": 0.0},
]
"""The last one hands some parameters on as they came, or takes no part."""


@pytest.fixture(autouse=True)
def nothing_kept():
    workbench.forget()
    yield
    workbench.forget()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        *(
            pytest.param(changes, marks=pytest.mark.slow, id=name)
            for name, changes in {
                "local norm": {"local_norm": True},
                "channels_last": {"runtime": {"channels_last": True}},
                "fedprox": {"federation": {"strategy": "fedprox"}},
                "mcnet": {"method": {"objective": "mcnet"}},
                "cct": {"method": {"objective": "cct"}},
                "bcp": {"method": {"objective": "bcp"}},
                "mean_teacher_mse": {"method": {"objective": "mean_teacher_mse"}},
            }.items()
        ),
    ],
    ids=lambda changes: "dusss",
)
def test_sites_that_share_one_trainer_make_the_model_of_sites_with_one_each(quiet, tmp_path, monkeypatch, changes):
    study = make_study(UNLIKE, segment__rounds=3, **changes)
    simulate(study, tmp_path / "each", reporter=quiet)
    workbench.forget()
    monkeypatch.setattr(workbench, "KEPT_SHARE", 0)
    simulate(study, tmp_path / "shared", reporter=quiet)
    assert finals(tmp_path / "shared") == finals(tmp_path / "each") and finals(tmp_path / "each")


def test_a_trainer_is_built_once_for_each_site_and_then_handed_on(quiet, tmp_path, monkeypatch):
    """The first round has no state on the disk, and begins with networks as they are made."""
    import dusss_core.training.segment as segment

    build, built = segment.build_student, []
    monkeypatch.setattr(segment, "build_student", lambda config: built.append(1) or build(config))
    monkeypatch.setattr(workbench, "KEPT_SHARE", 0)
    study = make_study(UNLIKE[:2], method={"preset": "mean_teacher"}, segment__rounds=4)
    simulate(study, tmp_path, reporter=quiet)
    assert len(built) == 2


def test_studies_that_take_turns_share_no_trainer(site_file, monkeypatch):
    """They may differ in what is trained, and in how fast its weights decay."""
    studies = {
        f"{number:032x}": make_study(method={"objective": objective}).training()
        for number, objective in enumerate(("bcp", "mean_teacher_mse"))
    }

    def trained(at_once):
        """The tensors of the second answers, where studies take turns and where one follows the other."""
        shutil.rmtree(site_file.parent / "state", ignore_errors=True)
        workbench.forget()
        rounds = [(key, round) for key in studies for round in (1, 2)]
        for key, round in sorted(rounds, key=lambda pair: pair[1]) if at_once else rounds:
            content = make_content(study=studies[key], run_key=key, round=round)
            content["arrays"] = wire.pack(initial_shared(studies[key], Phase.SEGMENT))
            reply = answer("train", content, site_file)
            assert declined(reply) is None
            if round == 2:
                yield key, {name: tensor.clone() for name, tensor in tensors_of(reply).items()}

    monkeypatch.setattr(workbench, "KEPT_SHARE", 0)
    in_turns, alone = dict(trained(True)), dict(trained(False))
    for key in studies:
        assert all(torch.equal(in_turns[key][name], tensor) for name, tensor in alone[key].items())


def test_sites_in_different_phases_share_no_trainer(site_file, monkeypatch):
    """As when one is asked again for a round of the phase before."""
    study = make_study(method={"preset": "mean_teacher"}).training()
    monkeypatch.setattr(workbench, "KEPT_SHARE", 0)
    first, second = copies_of(site_file, 2)
    for phase, round, file in ((Phase.SEGMENT, 1, first), (Phase.PRETRAIN, 1, second), (Phase.SEGMENT, 2, first)):
        content = make_content(study=study, phase=phase, round=round)
        content["arrays"] = wire.pack(initial_shared(study, phase))
        assert declined(answer("train", content, file)) is None


def copies_of(site_file, count):
    """So many sites with the data of one."""
    files = []
    for number in range(count):
        folder = site_file.parent.with_name(f"copy{number}")
        shutil.copytree(site_file.parent, folder)
        files.append(folder / site_file.name)
    return files


class Sites:
    """Messages to copies of a site, in one process."""

    def __init__(self, files):
        self.files, self.round = files, 0

    def take_turns(self):
        self.round += 1
        for file in self.files:
            assert declined(answer("train", make_content(round=self.round), file)) is None
        return [bench.site.state_dir.parent.name for bench in workbench._kept.values() if bench.seat is not None]


@pytest.fixture
def sites(fake, site_file):
    return Sites(copies_of(site_file, 5))


def test_with_room_for_all_every_site_keeps_its_trainer(sites):
    assert len(sites.take_turns()) == 5


def test_with_room_for_some_those_are_hit_in_every_round(sites, monkeypatch):
    """The oldest would be dropped just before it is wanted again, and no site would ever find its own."""
    monkeypatch.setattr(workbench, "_RECORD_BYTES", 0)
    sites.take_turns()
    one = next(iter(workbench._kept.values()))
    one.weigh()
    monkeypatch.setattr(workbench, "free_memory", lambda device, limits: 3.5 * one.weight / workbench.KEPT_SHARE)
    loaded, load = [], sites_loads(monkeypatch)
    for _ in range(3):
        kept = sites.take_turns()
        loaded.append(len(load))
        load.clear()
    assert 3 <= len(kept) <= 5
    assert loaded[-1] <= 3  # of five


def sites_loads(monkeypatch):
    from tests.server.fake_training import Segmenter

    loads, load = [], Segmenter.load_private
    monkeypatch.setattr(Segmenter, "load_private", lambda self, tensors: loads.append(1) or load(self, tensors))
    return loads


def test_without_room_nothing_but_the_last_is_kept(sites, monkeypatch):
    monkeypatch.setattr(workbench, "free_memory", lambda device, limits: 0.0)
    sites.take_turns()
    assert len(workbench._kept) == 1


def test_workbenches_of_other_settings_go_first(fake, site_file, monkeypatch):
    monkeypatch.setattr(workbench, "_RECORD_BYTES", 0)
    files = copies_of(site_file, 3)
    other = make_study(method={"preset": "mean_teacher"}, seed=2).training()
    for file in files:
        answer("train", make_content(study=other), file)
    old = list(workbench._kept)
    for bench in workbench._kept.values():
        bench.weigh()
    weight = bench.weight
    answer("train", make_content(), files[0])
    monkeypatch.setattr(workbench, "free_memory", lambda device, limits: 2.5 * weight / workbench.KEPT_SHARE)
    answer("train", make_content(), files[1])
    seated = [key for key, bench in workbench._kept.items() if bench.seat is not None]
    assert len(set(seated) & set(old)) < 3
    assert sum(key not in old for key in seated) == 2


def test_what_is_weighed_is_what_is_held_in_memory(site_file):
    """The pictures are mapped from a file, and do not count."""
    study = make_study(method={"preset": "mean_teacher"}).training()
    content = make_content(study=study)
    model = initial_shared(study, Phase.SEGMENT)
    content["arrays"] = wire.pack(model)
    assert declined(answer("train", content, site_file)) is None
    (bench,) = workbench._kept.values()
    bench.weigh()
    size = sum(tensor.nbytes for tensor in model.values())
    assert 3.9 * size < bench.weight < 4.1 * size  # network, teacher, two moments
    assert bench.kept_on("cpu") == bench.weight + 28 * workbench._RECORD_BYTES
    images = bench.split("train").images
    assert isinstance(images, np.memmap) and bench.kept_on("cuda:0") == 0


# What there is room for.


def test_free_memory_is_no_more_than_a_site_or_a_container_allows(site_file, monkeypatch, tmp_path):
    plenty = machine.free_memory("cpu", LimitsConfig())
    assert 0 < plenty < math.inf
    limits = load_site(site_file).limits.model_copy(update={"max_memory_gb": machine._status("VmRSS") / 1e9 + 0.01})
    assert machine.free_memory("cpu", limits) < 2e7
    monkeypatch.setattr(machine, "_container_room", lambda: 1000.0)
    assert machine.free_memory("cpu", LimitsConfig()) == 1000.0


def test_a_limit_on_memory_can_be_told_where_there_is_no_proc(monkeypatch):
    monkeypatch.setattr(machine.sys, "platform", "darwin")
    monkeypatch.setattr(machine, "_status", lambda field: pytest.fail("reads /proc"))
    monkeypatch.setattr(machine, "_peak_gb", lambda: 3.0)
    assert machine.free_memory("cpu", LimitsConfig(max_memory_gb=3.5)) <= 5e8


def test_the_room_of_a_container_counts_what_the_system_can_drop(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CONTROL_GROUP", tmp_path)
    assert machine._container_room() == math.inf
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 200\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._container_room() == math.inf
    (tmp_path / "memory.max").write_text("1000\n")
    assert machine._container_room() == 500


def test_of_a_gpu_what_torch_holds_in_reserve_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert machine.free_memory("cuda:1", LimitsConfig()) == 1200
