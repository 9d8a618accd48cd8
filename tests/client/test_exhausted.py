"""Memory that runs out and a GPU that fails cost a round at most, and a person is told what to do."""

from __future__ import annotations

import weakref

import pytest
import torch

import client.work.workbench
from client.answer import answer
from client.door import machine
from client.node import worker
from dusss_core.errors import UserError
from server.simulation.simulate import simulate
from tests.client.conftest import declined, limit, make_content, tensors_of
from tests.server.conftest import finals, make_study, quiet

__all__ = ["quiet"]

FULL = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "CUDA, older": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "CUDA, outside of torch's allocator": torch.AcceleratorError("CUDA error: out of memory"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "Apple": RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "Python": MemoryError(),
}
GONE = {
    "CUDA": torch.AcceleratorError("CUDA error: unspecified launch failure"),
    "CUDA, older": RuntimeError("CUDA error: device-side assert triggered"),
}


@pytest.fixture(autouse=True)
def device(monkeypatch):
    monkeypatch.setattr(machine, "_lost_devices", [])


def broken(error, when=lambda self: True):
    def broken(self, *arguments, **options):
        if when(self):
            raise error
        return self.undisturbed(*arguments, **options)

    return broken


def log_of(site_file):
    return (site_file.parent / "state" / "log.txt").read_text()


@pytest.mark.parametrize("error", FULL.values(), ids=FULL.keys())
def test_a_batch_that_does_not_fit_is_declined_with_the_one_to_try(fake, site_file, monkeypatch, error):
    monkeypatch.setattr(fake.Segmenter, "train_round", broken(error))
    reply = answer("train", make_content(), site_file)
    assert "for segment.batch: 8; 4 may fit" in declined(reply)
    assert ("GPU memory" in declined(reply)) == ("CPU" not in str(error) and bool(str(error)))
    assert reply["config"]["exhausted"] is True
    assert f"{error}" in log_of(site_file) and "Traceback" in log_of(site_file)
    assert not machine.device_is_lost()


def test_at_evaluation_it_is_said_how_many_pictures_to_evaluate_at_a_time(fake, site_file, monkeypatch):
    monkeypatch.setattr(fake.Segmenter, "validate", broken(FULL["CUDA"]))
    assert "for runtime.eval_batch: 64; 32 may fit" in declined(answer("train", make_content(), site_file))
    assert "for runtime.eval_batch: 64; 32 may fit" in declined(answer("evaluate", make_content(what="val"), site_file))
    monkeypatch.setattr("dusss_core.training.evaluate_student", broken(FULL["CUDA"]))
    assert "for runtime.eval_batch: 64; 32 may fit" in declined(
        answer("evaluate", make_content(what="test"), site_file)
    )


def test_of_the_smallest_batch_no_half_is_told(fake, site_file, monkeypatch):
    monkeypatch.setattr(fake.Segmenter, "train_round", broken(FULL["CUDA"]))
    study = make_study(method={"preset": "mean_teacher"}, segment__batch=2).training()
    assert "there is hardly a smaller one" in declined(answer("train", make_content(study=study), site_file))


def test_what_filled_the_memory_is_given_back_and_the_state_before_is_kept(fake, site_file, monkeypatch):
    answer("train", make_content(), site_file)
    clean = tensors_of(answer("train", make_content(round=2), site_file))
    held, train = [], fake.Segmenter.train_round

    class Activations:
        pass

    def full(self, round):
        activations = Activations()
        held.extend([weakref.ref(activations), weakref.ref(self)])
        train(self, round)
        raise RuntimeError(str(FULL["CPU"]))

    for limits in ({}, {"max_memory_gb": 1000}):
        limit(site_file, **limits)
        monkeypatch.setattr(fake.Segmenter, "train_round", full)
        reply = answer("train", make_content(round=2), site_file)
        assert reply["config"]["exhausted"] is True
        assert [reference() for reference in held] == [None] * len(held) and held
        assert not client.work.workbench._kept
        monkeypatch.setattr(fake.Segmenter, "train_round", train)
        again = tensors_of(answer("train", make_content(round=2), site_file))
        assert all(torch.equal(clean[name], again[name]) for name in clean)


# A study.


def test_a_study_whose_batch_fits_nowhere_ends_with_the_remedy_and_goes_on_with_half(
    fake, quiet, tmp_path, monkeypatch
):
    monkeypatch.setattr(fake.Segmenter, "undisturbed", fake.Segmenter.train_round, raising=False)
    too_large = broken(FULL["CUDA"], when=lambda self: self.step and self.config.segment.batch > 4)
    monkeypatch.setattr(fake.Segmenter, "train_round", too_large)
    with pytest.raises(UserError, match=r"segment round 2: no site has the memory") as caught:
        simulate(make_study(), tmp_path, reporter=quiet)
    assert "alder: this site has too little GPU memory for segment.batch: 8; 4 may fit" in caught.value.problem
    assert "--resume" in caught.value.remedy and "--set segment.batch=4 (now 8)" in caught.value.remedy
    with pytest.raises(UserError, match="segment round 2"):
        simulate(make_study(), tmp_path, reporter=quiet, resume=True)
    summary = simulate(make_study(segment__batch=4), tmp_path, reporter=quiet, resume=True)
    assert summary["rounds"]["segment"]["trained"] == 2


def test_a_site_without_the_memory_is_left_out_of_the_round_alone(fake, quiet, tmp_path, monkeypatch):
    monkeypatch.setattr(fake.Segmenter, "undisturbed", fake.Segmenter.train_round, raising=False)
    small = broken(FULL["CUDA"], when=lambda self: self.site == "birch")
    monkeypatch.setattr(fake.Segmenter, "train_round", small)
    summary = simulate(make_study(federation__min_sites=1), tmp_path, reporter=quiet)
    assert summary["rounds"]["segment"]["trained"] == 2
    assert "birch: this site has too little GPU memory" in (tmp_path / "log.txt").read_text()


# A GPU that fails.


@pytest.mark.parametrize("error", GONE.values(), ids=GONE.keys())
def test_a_gpu_that_fails_loses_the_round_and_the_process_is_not_used_again(fake, site_file, monkeypatch, error):
    monkeypatch.setattr(fake.Segmenter, "train_round", broken(error))
    reply = answer("train", make_content(), site_file)
    assert declined(reply) == "this site's GPU failed, and the round is lost; the state before is kept"
    assert reply["config"]["lost"] is True and machine.device_is_lost()
    assert str(error) in log_of(site_file)


def test_the_worker_answers_and_ends_for_the_supervisor_to_start_another(site_file, monkeypatch):
    answered = []

    def take(address, token, home):
        answered.append(token)
        machine.loses_device(GONE["CUDA"])

    monkeypatch.setattr(worker, "end_with_supervisor", lambda: None)
    monkeypatch.setattr(worker, "_warm_up", lambda threads: None)
    monkeypatch.setattr(worker._SuperNode, "next_task", lambda self: "token")
    monkeypatch.setattr(worker, "_take", take)
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match="lost its GPU"):
        worker.main([str(site_file)])
    assert answered == ["token"]
    assert not (site_file.parent / "state" / "flwr" / "in_work").exists()


def test_a_simulation_in_one_process_ends_with_a_remedy_and_can_be_resumed(fake, quiet, tmp_path, monkeypatch):
    undisturbed = tmp_path / "undisturbed"
    simulate(make_study(), undisturbed, reporter=quiet)
    train = fake.Segmenter.train_round
    monkeypatch.setattr(fake.Segmenter, "undisturbed", train, raising=False)
    monkeypatch.setattr(fake.Segmenter, "train_round", broken(GONE["CUDA"], when=lambda self: self.step))
    with pytest.raises(UserError, match="alder: the GPU failed: CUDA error: unspecified launch") as caught:
        simulate(make_study(), tmp_path / "run", reporter=quiet)
    assert "--resume" in caught.value.remedy
    monkeypatch.setattr(machine, "_lost_devices", [])  # a new process
    fake.forget()
    monkeypatch.setattr(fake.Segmenter, "train_round", train)
    simulate(make_study(), tmp_path / "run", reporter=quiet, resume=True)
    assert finals(tmp_path / "run") == finals(undisturbed)
