"""`limits.max_disk_gb` holds for every message and before every write, not for training alone."""

from __future__ import annotations

import pytest
import torch

from client.answer import answer
from client.door.audit import verify
from dusss_core import quota
from dusss_core.files import digest_of_tensors, write_bytes
from sites.packing import KEPT_PACKS, load_or_build
from tests.client.conftest import declined, limit, make_content
from tests.server.conftest import make_study


def state_of(site_file):
    return site_file.parent / "state"


def settings(size=32):
    return make_study(method={"preset": "mean_teacher"}, image={"size": size}).training()


def ask(site_file, kind, **config):
    return declined(answer(kind, make_content(**{"study": settings(), **config}), site_file))


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_full_state_takes_no_message_of_any_kind(fake, site_file, kind):
    assert ask(site_file, "train") is None
    limit(site_file, max_disk_gb=1e-6)
    before = quota.size_of(state_of(site_file) / "studies")
    assert "limits.max_disk_gb" in ask(site_file, kind, what="test")
    assert quota.size_of(state_of(site_file) / "studies") == before
    assert verify(state_of(site_file) / "audit.jsonl").broken is None  # which is written all the same


def test_evaluations_of_made_up_models_do_not_let_the_state_grow_beyond_its_limit(fake, site_file):
    assert ask(site_file, "evaluate", what="test") is None
    most = quota.size_of(state_of(site_file)) + 100_000
    limit(site_file, max_disk_gb=most / 1e9)
    for number in range(1, 6):
        vlm = {"body.weight": torch.full((100, 100), float(number)), "norm.running_mean": torch.zeros(4)}
        run = {"run_key": f"{number:032x}", "vlm": vlm, "vlm_digest": digest_of_tensors(vlm)}
        reason = ask(site_file, "evaluate", what="test", **run)
    assert "limits.max_disk_gb" in reason
    assert quota.size_of(state_of(site_file)) < most + 20_000  # the audit log and log.txt


def test_a_round_whose_state_has_no_room_is_not_answered(fake, site_file):
    assert ask(site_file, "train") is None
    limit(site_file, max_disk_gb=(quota.size_of(state_of(site_file)) + 10) / 1e9)
    assert "limits.max_disk_gb" in ask(site_file, "train", round=2)
    assert not list(state_of(site_file).rglob("segment-000002*"))
    limit(site_file, max_disk_gb=1)
    assert ask(site_file, "train", round=2) is None


def test_pictures_are_not_packed_beyond_the_limit_and_half_a_pack_is_not_left(fake, site_file):
    limit(site_file, max_disk_gb=50_000 / 1e9)
    assert "limits.max_disk_gb" in ask(site_file, "train")  # 28 pictures with masks of 32 x 32 are 57 kB
    assert not list((state_of(site_file) / "cache").iterdir())


def test_packs_of_picture_sizes_without_end_do_not_stay(fake, site_file):
    for size in range(32, 32 + 16 * 7, 16):
        study = settings(size)
        answer("train", make_content(study=study), site_file)
        newest = max((state_of(site_file) / "cache").glob("*/index.json"), key=lambda path: path.stat().st_mtime_ns)
    packs = {path.parent for path in (state_of(site_file) / "cache").glob("*/index.json")}
    assert len(packs) == KEPT_PACKS and newest.parent in packs


def test_of_packs_those_that_were_used_last_stay(tmp_path):
    import os

    def build(builder):
        builder.add_array("images", (2,))

    names = [f"{number:032x}" for number in range(KEPT_PACKS)]
    for at, name in enumerate(names):
        load_or_build(tmp_path, name, build)
        os.utime(tmp_path / name, (at, at))
    load_or_build(tmp_path, names[0], build)  # used again
    load_or_build(tmp_path, "f" * 32, build)
    assert {path.name for path in tmp_path.iterdir()} == {"f" * 32, *names} - {names[1]}


def test_only_the_bounded_folder_is_bounded(tmp_path):
    with quota.bounded(tmp_path / "a", 100):
        write_bytes(tmp_path / "b" / "file", b"x" * 200)
        write_bytes(tmp_path / "a" / "file", b"x" * 90)
        with pytest.raises(quota.NoRoom):
            write_bytes(tmp_path / "a" / "more", b"x" * 20)
    write_bytes(tmp_path / "a" / "more", b"x" * 20)
