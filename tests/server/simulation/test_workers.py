"""Sites side by side in worker processes: the same bits, and a process that dies costs its site one round."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest
import torch

from dusss_core.errors import UserError
from server.runs.events import Reporter
from server.simulation.inprocess import Failure
from server.simulation.materialise import materialise
from server.simulation.simulate import simulate
from tests.server.conftest import finals, make_study
from tests.server.losing_app import LosesItsGPU

SIDE_BY_SIDE = {"simulation__workers": 2, "simulation__threads": 1}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    assert not multiprocessing.active_children()


class Told(Reporter):
    def __init__(self):
        self.steps, self.refused, self.messages = [], [], []

    def on_site_step(self, site, step, steps, loss):
        self.steps.append(site)

    def on_site_refused(self, site, reason):
        self.refused.append((site, reason))

    def on_message(self, text):
        self.messages.append(text)


def test_two_workers_give_the_bits_of_one_process(tmp_path):
    turns, told = tmp_path / "turns", Told()
    one = simulate(make_study(simulation__threads=1), turns, reporter=Reporter())
    two = simulate(make_study(**SIDE_BY_SIDE), tmp_path / "side", reporter=told)
    assert finals(turns) == finals(tmp_path / "side") and len(finals(turns)) == 2
    assert {name: site["dice"] for name, site in one["sites"].items()} == {
        name: site["dice"] for name, site in two["sites"].items()
    }
    assert set(told.steps) == {"alder", "birch"}


def test_a_worker_that_is_killed_costs_its_site_one_round(tmp_path):
    class Killer(Told):
        def on_site_step(self, site, step, steps, loss):
            super().on_site_step(site, step, steps, loss)
            if self.steps == [site]:
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    told = Killer()
    study = make_study(method={"preset": "supervised"}, segment__rounds=3, **SIDE_BY_SIDE)
    summary = simulate(study, tmp_path, reporter=told)
    ((site, _),) = told.refused
    assert site in ("alder", "birch")
    assert any(site in text and "exit code -9" in text for text in told.messages)
    assert summary["rounds"]["segment"]["trained"] == 3
    assert told.steps.count(site) > 1  # it is back in the next round


def test_a_worker_whose_gpu_fails_answers_and_another_takes_its_place(tmp_path, monkeypatch):
    notes, told = tmp_path / "notes", Told()
    monkeypatch.setattr("client.app.app", LosesItsGPU(notes))
    study = make_study(method={"preset": "supervised"}, federation__min_sites=2, **SIDE_BY_SIDE)
    summary = simulate(study, tmp_path / "run", reporter=told)
    ((site, reason),) = told.refused
    assert "GPU failed, and the round is lost" in reason
    assert any(site in text and "unspecified launch failure" in text for text in told.messages)
    # asked again, the site made its round in another process
    assert summary["rounds"]["segment"]["trained"] == 2
    processes = notes.read_text().split()
    assert len(processes) == 5 and processes.count(processes[0]) == 1


def test_what_a_site_must_mend_is_told_as_in_one_process(tmp_path):
    study = make_study(method={"preset": "supervised"}, **SIDE_BY_SIDE)
    materialise(study, tmp_path)
    manifest = tmp_path / "sites" / "birch" / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("images/", "nowhere/"))
    with pytest.raises(UserError, match="birch") as caught:
        simulate(study, tmp_path, reporter=Reporter())
    assert caught.value.remedy


def test_an_error_that_can_not_leave_its_process_is_told_in_the_same_words():
    class OfSomeLibrary(Exception):
        def __init__(self, code):
            super().__init__(f"code {code}")
            self.held = lambda: code

    error = OfSomeLibrary(7)
    here, there = multiprocessing.Pipe()
    with pytest.raises((AttributeError, TypeError)):
        here.send(error)
    here.send(Failure.of(error))
    assert there.recv() == ("OfSomeLibrary", "code 7", None)
    assert Failure.of(UserError("a", "b", "FD101")).mendable == ("a", "b", "FD101")
