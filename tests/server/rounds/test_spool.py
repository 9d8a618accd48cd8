"""Answers that wait on the disk: read as they were put, never left behind, and a full disk ends the run whole."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from dusss_core.errors import UserError
from server.rounds.spool import Spool
from server.simulation.simulate import simulate
from tests.server.conftest import HOSPITALS, finals, make_study
from tests.server.unreliable import UnreliableGrid, coordinate

MODEL = {
    "w": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "long": torch.tensor(2**40 + 1),
    "flag": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 4),
    "double": torch.tensor([-0.0, 1 / 3], dtype=torch.float64),
}


def test_an_answer_is_read_as_it_was_put(tmp_path):
    spool = Spool(tmp_path, MODEL)
    others = {name: torch.zeros_like(tensor) for name, tensor in MODEL.items()}
    spool.put(others)
    answer = spool.put(MODEL)
    spool.put(others)
    assert answer.keys() == MODEL.keys() and len(answer) == len(MODEL)
    for name, tensor in MODEL.items():
        assert answer[name].dtype == tensor.dtype and torch.equal(answer[name], tensor)
    assert answer.numbers(["w"], 4, 9).tolist() == MODEL["w"].reshape(-1)[4:9].tolist()
    spool.close()


def test_nothing_lies_in_the_folder_while_answers_wait_or_after(tmp_path):
    spool = Spool(tmp_path, MODEL)
    spool.put(MODEL)
    assert list(tmp_path.iterdir()) == []
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_what_a_full_disk_cut_off_is_no_answer(tmp_path, monkeypatch):
    spool, write, calls = Spool(tmp_path, MODEL), os.pwritev, []

    def full(file, buffers, at):
        calls.append(at)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        first, *rest = buffers
        taken = [first, rest[0][:2]] if len(calls) % 2 and rest else [first[:3]]  # as the system may
        return write(file, taken, at)

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(UserError, match=r"No space left on device.*\n.*free disk space.*--resume"):
        spool.put(MODEL)
    answer = spool.put(MODEL)
    assert all(torch.equal(answer[name], tensor) for name, tensor in MODEL.items())


def test_a_full_disk_in_mid_round_leaves_the_checkpoint_before(fake, quiet, tmp_path, monkeypatch):
    put, calls = Spool.put, []

    def full(self, tensors):
        calls.append(tensors)
        if len(calls) == 4:  # the second site in the second round
            raise self._full(OSError(errno.ENOSPC, "No space left on device"))
        return put(self, tensors)

    monkeypatch.setattr(Spool, "put", full)
    with pytest.raises(UserError, match="free disk space"):
        simulate(make_study(), tmp_path / "run", reporter=quiet)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["pretrain-0001.safetensors"]
    monkeypatch.setattr(Spool, "put", put)
    fake.forget()
    simulate(make_study(), tmp_path / "run", reporter=quiet, resume=True)
    simulate(make_study(), tmp_path / "whole", reporter=quiet)
    assert finals(tmp_path / "run") == finals(tmp_path / "whole")


class Backwards(UnreliableGrid):
    """The answers of a round arrive when all are there, the last site's first."""

    def pull_messages(self, message_ids):
        ids = list(message_ids)
        trained = [i for i in ids if i in self._replies and self._replies[i].metadata.message_type == "train"]
        if trained and len(trained) < len(HOSPITALS) + 1:
            return []
        return super().pull_messages(reversed(ids))


def test_the_result_does_not_depend_on_the_order_of_answers(fake, tmp_path, monkeypatch):
    monkeypatch.setattr("server.rounds.exchange.POLL_S", 0.01)
    study = make_study([*HOSPITALS, {**HOSPITALS[1], "name": "cedar"}])
    _, forwards = coordinate(study, tmp_path / "forwards")
    monkeypatch.setattr("tests.server.unreliable.UnreliableGrid", Backwards)
    _, backwards = coordinate(study, tmp_path / "backwards")
    assert forwards.done[:3] == ["alder", "birch", "cedar"]
    assert backwards.done[:3] == ["cedar", "birch", "alder"]
    assert finals(tmp_path / "forwards") == finals(tmp_path / "backwards")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="the most memory that was held is read from /proc")
def test_the_coordinators_memory_is_the_same_for_three_and_for_thirty_sites(tmp_path):
    """At the paper's size. Held at once, the answers of thirty sites would be 1.8 GB."""
    peaks = {}
    for sites in (3, 30):
        command = [sys.executable, "-m", "tests.server.many_sites", str(tmp_path), str(sites), "64"]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        assert told["answer_mb"] > 58
        peaks[sites] = told["peak_mb"]
    assert peaks[30] == pytest.approx(peaks[3], rel=0.1)
