"""The private state of the last two rounds is whole on the disk at every moment, and written no more than it must."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time

import pytest
import torch

import client.state.store
from client.answer import answer
from client.state.store import SiteState, locked
from dusss_core import files
from dusss_core.errors import UserError
from dusss_core.phases import Phase
from tests.client.conftest import declined, make_content

KEY = "ab" * 16
NUMBERS = 400_000


def state_of(round, numbers=NUMBERS):
    return {"step": torch.tensor(round), "optimizer.0.exp_avg": torch.full((numbers,), float(round))}


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.fixture
def state(tmp_path):
    return SiteState(tmp_path, "study", KEY)


def names(state):
    return sorted(path.name for path in state.folder.iterdir())


def test_a_kill_at_any_moment_leaves_the_state_of_the_last_two_rounds(tmp_path):
    for attempt in range(12):
        state = SiteState(tmp_path, "study", f"{attempt:032x}")
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            for round in range(1, 10_000):
                state.save(Phase.SEGMENT, round, state_of(round))
                os.write(writing, b".")
        for _ in range(3):
            os.read(reading, 1)
        time.sleep(0.002 * attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(writing)
        saved = 3 + len(os.read(reading, 10_000))
        os.close(reading)
        found, newest = state.newest(Phase.SEGMENT, before=10**6)
        assert newest in (saved, saved + 1) and same(found, state_of(newest))
        found, before = state.newest(Phase.SEGMENT, before=newest)
        assert before == newest - 1 and same(found, state_of(before))
        # and the next process goes on
        state.save(Phase.SEGMENT, newest + 1, state_of(newest + 1))
        assert same(state.newest(Phase.SEGMENT, before=10**6)[0], state_of(newest + 1))


def test_a_state_is_written_over_one_that_no_resume_can_need(state):
    for round in (1, 2, 3):
        state.save(Phase.SEGMENT, round, state_of(round))
    spare = state.folder / "segment-spare"
    room = spare.stat().st_ino
    # a shorter one leaves nothing of the longer one behind it
    state.save(Phase.SEGMENT, 4, state_of(4, numbers=10))
    path = state.folder / "segment-000004.safetensors"
    assert path.stat().st_ino == room and path.stat().st_size < 1000
    assert same(state.newest(Phase.SEGMENT, before=5)[0], state_of(4, numbers=10))
    assert names(state) == ["segment-000003.safetensors", "segment-000004.safetensors", "segment-spare"]


def test_a_phase_that_is_over_keeps_no_room(state):
    for phase in (Phase.PRETRAIN, Phase.SEGMENT):
        for round in (1, 2, 3):
            state.save(phase, round, state_of(round, numbers=10))
    assert "pretrain-spare" not in names(state) and "segment-spare" in names(state)


def test_a_run_that_is_over_keeps_no_room(state, tmp_path):
    for round in (1, 2, 3):
        state.save(Phase.SEGMENT, round, state_of(round, numbers=10))
    SiteState(tmp_path, "study", "cd" * 16).save(Phase.SEGMENT, 1, state_of(1, numbers=10))
    assert names(state) == ["segment-000002.safetensors", "segment-000003.safetensors"]


def test_layers_that_stay_at_the_site_are_written_once_and_belong_to_the_state(state):
    layers = {"local.norm.weight": torch.ones(NUMBERS)}
    state.save(Phase.SEGMENT, 1, {**state_of(1, numbers=1), **layers})
    assert sum(path.stat().st_size for path in state.folder.iterdir()) < 1.1 * 4 * NUMBERS
    assert same(state.newest(Phase.SEGMENT, before=2)[0], {**state_of(1, numbers=1), **layers})
    assert state.local_layers(Phase.SEGMENT, 1).keys() == {"norm.weight"}


def test_layers_in_the_state_of_an_older_release_are_read(state):
    layers = {"local.norm.weight": torch.ones(3)}
    state.save(Phase.SEGMENT, 1, state_of(1, numbers=1))
    files.write_tensors(state.folder / "segment-000001.safetensors", {**state_of(1, numbers=1), **layers})
    assert same(state.newest(Phase.SEGMENT, before=2)[0], {**state_of(1, numbers=1), **layers})


def change_a_number(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_state_in_which_a_byte_has_changed_is_not_read_and_its_remedy_helps(state):
    for round in (1, 2):
        state.save(Phase.SEGMENT, round, {**state_of(round, numbers=4), "local.norm.weight": torch.ones(3)})
    newest, layers = (state.folder / f"segment-{kind}000002.safetensors" for kind in ("", "local-"))
    change_a_number(layers)
    with pytest.raises(UserError, match=rf"{layers.name}: damaged.*\n.*move it and {newest.name} away: .*round before"):
        state.newest(Phase.SEGMENT, before=3)
    with pytest.raises(UserError, match=rf"{layers.name}: damaged.*\n.*move it away"):
        state.local_layers(Phase.SEGMENT, 2)
    layers.unlink()
    change_a_number(newest)
    with pytest.raises(UserError, match=rf"{newest.name}: damaged.*\n.*move it away: .*round before"):
        state.newest(Phase.SEGMENT, before=3)
    newest.unlink()
    assert state.newest(Phase.SEGMENT, before=3)[1] == 1
    assert state.local_layers(Phase.SEGMENT, 2).keys() == {"norm.weight"}


def test_a_damaged_vision_language_model_is_as_one_that_was_not_given(state):
    model = {"weight": torch.ones(3)}
    digest = files.digest_of_tensors(model)
    state.save_vlm(digest, model)
    assert same(state.vlm(digest), model)
    change_a_number(state.folder / f"vlm-{digest}.safetensors")
    assert state.vlm(digest) is None
    state.save_vlm(digest, model)
    assert same(state.vlm(digest), model)


def student(value: float) -> dict:
    return {"head.weight": torch.full((3,), value)}


def test_of_a_sites_own_students_the_best_is_kept_and_of_equals_the_later(state):
    assert state.personal() is None
    for round, score in ((1, 0.3), (2, 0.5), (3, 0.5), (4, 0.4), (5, 0.1)):
        state.offer_personal(round, student(round), score)
    tensors, round = state.personal()
    assert round == 3 and same(tensors, student(3))


def test_a_round_that_is_made_again_forgets_the_students_of_later_ones(state):
    for round, score in ((1, 0.3), (2, 0.1), (3, 0.6), (4, 0.7)):
        state.offer_personal(round, student(round), score)
    state.offer_personal(3, student(30), 0.2)  # after another round 3 it is worse
    assert state.personal()[1] == 1
    state.offer_personal(4, student(40), 0.4)
    assert same(state.personal()[0], student(40))


def test_few_students_take_room_however_often_one_is_better(state):
    for round in range(1, 9):
        state.offer_personal(round, student(round), round / 10)
    assert len([name for name in names(state) if "personal" in name]) <= 3
    state.save_personal(7, student(70))
    assert [name for name in names(state) if "personal" in name] == ["segment-personal-000007.safetensors"]
    assert same(state.personal()[0], student(70))


# What an answer waits for.


def test_an_answer_leaves_when_its_state_is_on_the_disk_and_nobody_else_works_before(fake, site_file, monkeypatch):
    save, seen = SiteState.save, []
    monkeypatch.setattr(client.state.store.locked.__wrapped__, "__defaults__", (0.0,))

    def slow(self, *arguments):
        time.sleep(0.3)
        try:
            with locked(site_file.parent / "state"):
                seen.append("no lock")
        except client.state.store.Declined:
            seen.append("locked")
        save(self, *arguments)
        seen.append(threading.current_thread() is threading.main_thread())

    monkeypatch.setattr(SiteState, "save", slow)
    assert declined(answer("train", make_content(), site_file)) is None
    assert seen == ["locked", False]
    assert list((site_file.parent / "state").rglob("segment-000001.safetensors"))


def full(file, piece):
    file.write(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_answer_whose_state_could_not_be_kept_is_not_recorded_as_one(fake, site_file, monkeypatch):
    monkeypatch.setattr(files, "_write_all", full)
    reply = answer("train", make_content(), site_file)
    assert declined(reply).startswith("UserError") and not reply.array_records
    log = (site_file.parent / "state" / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in log] == ["message", "declined"]


def test_what_fails_while_the_state_is_written_waits_for_it(fake, site_file, monkeypatch):
    save, done = SiteState.save, []

    def slow(self, *arguments):
        time.sleep(0.3)
        save(self, *arguments)
        done.append(True)

    monkeypatch.setattr(SiteState, "save", slow)
    content = make_content()
    monkeypatch.setattr("client.work.training.wire.pack", lambda tensors: 1 / 0)
    assert declined(answer("train", content, site_file)).startswith("ZeroDivisionError")
    assert done == [True]
