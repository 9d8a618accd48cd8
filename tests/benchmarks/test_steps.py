"""benchmarks/steps.py measures every form of every step, and its figures mean what they say."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import steps
from benchmarks.gpu import timing, variants
from benchmarks.gpu.variants import EAGER, Variant, work_of
from dusss_core.files import digest_of_tensors

CPU = torch.device("cpu")


FORMS = {"eager", "fp32", "fp32 channels_last", "bf16", "bf16 channels_last", "runtime: auto"}


@pytest.mark.parametrize(
    ("phases", "batches", "threads"), [(["predict"], [2, 4], [1, 2]), (["pretrain", "segment"], [2], [1])]
)
def test_the_file_has_a_row_for_every_form_of_every_step(phases, batches, threads, tmp_path):
    file = tmp_path / "steps.json"
    lists = {"phases": phases, "batches": batches, "threads": threads}
    options = [f"--{name}={','.join(map(str, values))}" for name, values in lists.items()]
    assert steps.main([*options, "--sizes=demo", "--steps=1", "--repeats=1", "--device=cpu", f"--out={file}"]) == 0
    found = json.loads(file.read_text())
    places = [(row["phase"], row["batch"], row["threads"], row["variant"]) for row in found["rows"]]
    # what trains only makes no difference to prediction
    forms = {phase: FORMS - {"fp32"} if phase == "predict" else FORMS for phase in phases}
    wanted = [(p, b, t, form) for p in phases for b in batches for t in threads for form in forms[p]]
    assert sorted(places) == sorted(wanted)
    for row in found["rows"]:
        assert row["seconds"] > 0 and row["cpu_seconds"] > 0
        if row["variant"] == "eager":
            assert row["times_faster_seconds"] == row["times_faster_cpu_seconds"] == 1
    assert set(found["machine"]) == {"processor", "cores", "torch", "python"}
    assert found["date"] and found["commit"]
    assert not found["left_out"]


def test_what_the_budget_is_too_small_for_is_named():
    found = steps.measure(CPU, phases=("predict",), batches=(2, 4), threads=(1,), steps=1, repeats=1, budget_s=0.0)
    assert [place["batch"] for place in found["rows"]] + [place["batch"] for place in found["left_out"]] == [2, 4]


@pytest.mark.parametrize("option", ["--sizes=big", "--phases=training", "--batches=0", "--threads=two"])
def test_an_option_that_is_not_known_is_the_users_to_mend(option, capsys):
    assert steps.main([option, "--device=cpu"]) == 2
    assert option.removeprefix("--").split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("phase", ["pretrain", "segment"])
def test_the_plain_form_trains_the_same_network_on_the_same_pictures(phase, tmp_path):
    plain, own = (work_of(phase, "demo", 4, form, CPU, tmp_path) for form in (EAGER, Variant("fp32")))
    assert type(plain) is not type(own)
    before = [digest_of_tensors(work.trainer.shared()) for work in (plain, own)]
    assert before[0] == before[1]
    for work, digest in zip((plain, own), before, strict=True):
        work.run(1)
        assert digest_of_tensors(work.trainer.shared()) != digest


def test_the_switches_of_a_form_are_its_own():
    """The policy of torch is global: one form must not change another's."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    with variants.policy(Variant("x", tf32=True, benchmark=True), CPU):
        assert torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.benchmark
        with variants.policy(EAGER, CPU):
            assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        with variants.policy(variants.AUTO, torch.device("cuda")):
            assert torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == before


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([], 0.0),
        ([(0, 10)], 1.0),
        ([(5, 10), (0, 2)], 0.7),  # in any order
        ([(0, 6), (1, 2), (4, 8), (9, 10)], 0.9),  # side by side counts once
    ],
)
def test_the_busy_share_counts_time_in_which_anything_runs(spans, share):
    assert timing.covered_share(spans) == pytest.approx(share)


def test_the_busy_share_is_rehearsed_without_a_gpu(tmp_path):
    work = work_of("segment", "demo", 2, Variant("fp32"), CPU, tmp_path)
    assert 0.3 < timing.busy_share(work, 2, Variant("fp32"), CPU) <= 1
