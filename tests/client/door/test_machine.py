"""A site's limits on memory are held, and cost no more than the round."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from client.answer import answer
from client.door.machine import resolve_device
from dusss_core.errors import UserError
from sites.config import LimitsConfig
from tests.client.conftest import declined, limit, make_content
from tests.server.conftest import make_study

_HUNGRY = """
import numpy
import torch
from client.door.machine import _status, held
from client.declined import Declined
from sites.config import LimitsConfig
from dusss_core.phases import Phase

def peak():
    return _status("VmHWM") / 1e9  # ru_maxrss begins with what the parent had when it forked

most = peak() + 0.4
for allocate in (lambda: bytearray(20_000_000), lambda: numpy.ones(2_500_000), lambda: torch.ones(5_000_000)):
    kept = []
    try:
        with held(LimitsConfig(max_memory_gb=most), "cpu"):
            for step in range(100):
                kept.append(allocate())
        raise SystemExit("all of it was given")
    except Declined as declined:
        assert "limits.max_memory_gb" in str(declined)
    # pages of libraries that are first used meanwhile count too, and were not asked for: a few megabytes
    assert len(kept) > 5 and peak() <= most + 0.015, (len(kept), peak(), most)
    kept.clear()
after = torch.ones(125_000_000)  # the limit is gone
print("held")
"""


@pytest.mark.parametrize(
    ("count", "told"), [(1, "this machine has one GPU, cuda:0"), (2, "this machine has 2 GPUs, cuda:0 to cuda:1")]
)
def test_a_gpu_that_is_not_there_is_named_with_those_that_are(monkeypatch, count, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    for name in ("auto", "cuda", "cuda:0", f"cuda:{count - 1}", "cpu"):
        assert resolve_device(name) == (name if name != "auto" else "cuda")
    with pytest.raises(UserError, match=f"device: cuda:{count} is not available: {told}") as caught:
        resolve_device(f"cuda:{count}")
    assert caught.value.remedy


def test_without_a_gpu_none_is_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device: cuda:1 is not available on this machine"):
        resolve_device("cuda:1")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds it")
def test_memory_beyond_the_limit_is_never_had():
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", _HUNGRY], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "held", done.stderr


def test_a_round_that_wants_too_much_memory_is_declined_and_the_next_one_is_well(fake, site_file, monkeypatch):
    from client.door.machine import _status

    limit(site_file, max_memory_gb=_status("VmRSS") / 1e9 + 0.5)
    train = fake.Segmenter.train_round
    monkeypatch.setattr(fake.Segmenter, "train_round", lambda self, round: torch.ones(10**9) and None)
    assert "limits.max_memory_gb" in declined(answer("train", make_content(), site_file))
    assert not list((site_file.parent / "state").rglob("segment-*"))
    monkeypatch.setattr(fake.Segmenter, "train_round", train)
    assert declined(answer("train", make_content(), site_file)) is None


def test_a_messages_tensors_are_decoded_within_the_limit(fake, site_file, monkeypatch):
    from client.door.machine import _status

    limit(site_file, max_memory_gb=_status("VmRSS") / 1e9 + 0.5)
    monkeypatch.setattr("client.door.entrance.wire.views", lambda record: torch.ones(10**9) and None)
    assert "limits.max_memory_gb" in declined(answer("train", make_content(), site_file))


def test_an_error_that_is_not_of_memory_is_told_as_it_is(fake, site_file, monkeypatch):
    limit(site_file, max_memory_gb=1000)
    monkeypatch.setattr(fake.Segmenter, "train_round", lambda self, round: torch.ones(2) @ torch.ones(3))
    assert declined(answer("train", make_content(), site_file)).startswith("RuntimeError")


def test_a_gpus_share_is_set_for_the_round_and_given_back(monkeypatch):
    """Without a GPU here: what torch is asked to hold."""
    from types import SimpleNamespace

    from client.declined import Declined
    from client.door.machine import held

    asked = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=80 * 10**9))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *call: asked.append(call))
    with pytest.raises(Declined, match=r"limits\.max_gpu_memory_gb"), held(LimitsConfig(max_gpu_memory_gb=20), "cuda"):
        raise torch.OutOfMemoryError
    assert asked == [(0.25, 0), (1.0, 0)]


def test_a_real_round_fits_into_a_limit_that_is_large_enough(site_file):
    from client.door.machine import _status

    limit(site_file, max_memory_gb=_status("VmRSS") / 1e9 + 2)
    study = make_study(method={"preset": "mean_teacher"}).training()
    from dusss_core.phases import Phase
    from dusss_core.training import initial_shared
    from feddusss import wire

    content = make_content(study=study, arrays=False)
    content["arrays"] = wire.pack(initial_shared(study, Phase.SEGMENT))
    assert declined(answer("train", content, site_file)) is None
