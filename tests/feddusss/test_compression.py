"""Compressed changes: how far off they are, that nothing is lost for good, and that a hostile one is refused."""

from __future__ import annotations

import pytest
import torch

from feddusss import compression, wire
from feddusss.compression import BLOCK, Codec, compress, expand

INT8, TOPK = Codec("int8"), Codec("topk", 0.05)


def model(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    """A model with learned tensors large and small, statistics and a counter."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "body.weight": torch.randn(40, 9, 3, generator=draw) * scale,
        "head.weight": torch.randn(2 * BLOCK, generator=draw) * scale * 0.01,
        "head.bias": torch.randn(4, generator=draw) * scale,
        "norm.running_var": torch.rand(70, generator=draw),
        "norm.num_batches_tracked": torch.tensor(seed),
    }


def moved(start: dict[str, torch.Tensor], seed: int, scale: float = 0.01) -> dict[str, torch.Tensor]:
    """A model after a round of training."""
    step = model(seed, scale)
    return {name: start[name] + step[name] if wire.is_rounded(name, start[name]) else step[name] for name in start}


def travelled(parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return wire.unpack(wire.pack(parts))


def test_int8_is_off_by_at_most_half_a_step_of_its_block():
    base, after = model(1), moved(model(1), 2)
    _, lost = compress(INT8, after, base)
    for name in ("body.weight", "head.weight"):
        change, off = (tensor[name].reshape(-1).split(BLOCK) for tensor in ({name: after[name] - base[name]}, lost))
        for numbers, error in zip(change, off, strict=True):
            # 127 steps up to the largest magnitude
            assert 0 < float(error.abs().max()) <= float(numbers.abs().max()) / 127 / 2 * 1.0001


def test_topk_sends_the_largest_magnitudes_and_nothing_else():
    base, after = model(1), moved(model(1), 2)
    parts, lost = compress(TOPK, after, base)
    change = (after["body.weight"] - base["body.weight"]).reshape(-1)
    kept = change.abs().sort(descending=True).values[53]
    assert len(parts["body.weight/place"]) == 54  # 5 % of 1080
    torch.testing.assert_close(
        lost["body.weight"].reshape(-1), torch.where(change.abs() >= kept, torch.zeros(()), change)
    )


@pytest.mark.parametrize("codec", [INT8, TOPK], ids=lambda codec: codec.name)
def test_what_is_lost_is_what_does_not_arrive_and_the_rest_arrives_as_it_is(codec):
    base, after = model(1), moved(model(1), 2)
    parts, lost = compress(codec, after, base)
    arrived = expand(codec, travelled(parts), base)
    assert arrived.keys() == base.keys()
    for name, tensor in after.items():
        assert (arrived[name].dtype, arrived[name].shape) == (tensor.dtype, tensor.shape)
        torch.testing.assert_close(arrived[name] + lost.get(name, 0), tensor, rtol=0, atol=1e-6)
    for name in ("norm.running_var", "norm.num_batches_tracked"):
        assert torch.equal(arrived[name], after[name])
    assert lost.keys() == {"body.weight", "head.weight"}


@pytest.mark.parametrize("codec", [INT8, TOPK], ids=lambda codec: codec.name)
def test_with_error_feedback_the_sum_of_what_arrives_is_the_sum_of_the_changes_but_for_the_last_loss(codec):
    base, truth = model(1), model(1)
    lost, worst = None, 0.0
    arrived = base
    for round in range(30):
        after = moved(arrived, 100 + round)
        change = {name: after[name] - arrived[name] for name in ("body.weight", "head.weight")}
        truth = {name: truth[name] + change[name] for name in change}
        parts, lost = compress(codec, after, arrived, lost)
        arrived = expand(codec, parts, arrived)
        worst = max(worst, float((truth["body.weight"] - arrived["body.weight"] - lost["body.weight"]).abs().max()))
    assert worst < 1e-5
    if codec is INT8:  # the loss does not grow from round to round
        assert float(lost["body.weight"].abs().max()) < 0.01 * 5 / 127


@pytest.mark.parametrize("codec", [INT8, TOPK], ids=lambda codec: codec.name)
def test_a_model_that_stands_still_is_reached_by_changes_alone(codec):
    """As on the way down: what was not sent is in the next difference by itself."""
    target, held = model(5), model(1)
    before = float((target["body.weight"] - held["body.weight"]).norm())
    for _ in range(25):
        held = expand(codec, compress(codec, target, held)[0], held)
    assert float((target["body.weight"] - held["body.weight"]).norm()) < 1e-4 * before


@pytest.mark.parametrize("codec", [INT8, TOPK], ids=lambda codec: codec.name)
def test_the_same_change_gives_the_same_bytes(codec):
    first, second = (wire.content(wire.pack(compress(codec, moved(model(1), 2), model(1))[0])) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("codec", [INT8, TOPK], ids=lambda codec: codec.name)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-40, 1e30])
def test_changes_that_are_zero_tiny_or_huge_arrive_finite(codec, size):
    base = {"w": torch.zeros(300)}
    after = {"w": torch.full((300,), size)}
    parts, lost = compress(codec, after, base)
    arrived = expand(codec, travelled(parts), base)["w"]
    assert torch.isfinite(arrived).all() and torch.isfinite(lost["w"]).all()
    assert ((arrived + lost["w"] - after["w"]).abs() <= size * 1e-6).all()


def test_int8_takes_about_a_quarter_and_topk_a_tenth_of_the_bytes():
    base = {"w": torch.randn(1000, 300), "n.running_var": torch.ones(8)}
    after = {name: tensor + 0.1 for name, tensor in base.items()}
    whole = wire.size(wire.pack(base))
    assert wire.size(wire.pack(compress(INT8, after, base)[0])) < 0.256 * whole
    assert wire.size(wire.pack(compress(TOPK, after, base)[0])) < 0.102 * whole


@pytest.mark.parametrize("codec", [INT8, TOPK], ids=lambda codec: codec.name)
def test_the_layout_is_what_is_made_and_bounds_its_bytes(codec):
    base = model(1)
    parts, _ = compress(codec, moved(base, 2), base)
    found = {name: (str(part.dtype).removeprefix("torch."), tuple(part.shape)) for name, part in parts.items()}
    assert found == codec.layout(base)
    assert wire.size(wire.pack(parts)) <= compression.most_bytes(codec, base, 512) + 4096
    assert compression.most_bytes(codec, base, 0) == sum(p.numel() * p.element_size() for p in parts.values())


def without(name):
    return lambda parts: parts.pop(name)


def with_(name, make):
    return lambda parts: parts.update({name: make(parts.get(name))})


HOSTILE = {
    "a tensor is missing": (INT8, without("body.weight"), "'body.weight' is missing"),
    "scales are missing": (INT8, without("body.weight/scale"), "'body.weight/scale' is missing"),
    "one more tensor": (INT8, with_("secret", lambda _: torch.zeros(3)), "1 tensors that were not asked for"),
    "too few scales": (INT8, with_("body.weight/scale", lambda s: s[1:]), "float32 4 instead of float32 5"),
    "too many scales": (INT8, with_("body.weight/scale", lambda s: s.repeat(2)), "float32 10 instead of"),
    "scales of another type": (INT8, with_("body.weight/scale", lambda s: s.double()), "float64 5 instead of"),
    "numbers of another type": (INT8, with_("body.weight", lambda q: q.float()), "float32 1080 instead of int8"),
    "a small tensor of another shape": (INT8, with_("head.bias", lambda b: b[:2]), "float32 2 instead of float32 4"),
    "a place that is too large": (TOPK, with_("body.weight/place", lambda p: p + 1000), "not between 0 and 1079"),
    "a place below zero": (TOPK, with_("body.weight/place", lambda p: p - 1000), "not ascending, or not between"),
    "a place twice": (TOPK, with_("body.weight/place", lambda p: p.clone().fill_(7)), "not ascending"),
    "places out of order": (TOPK, with_("body.weight/place", lambda p: p.flip(0)), "not ascending"),
    "more places": (TOPK, with_("body.weight/place", lambda p: torch.arange(1080).int()), "int32 1080 instead of"),
    "places of another type": (TOPK, with_("body.weight/place", lambda p: p.long()), "int64 54 instead of int32"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_change_of_another_form_is_refused_with_the_reason(case):
    codec, meddle, reason = HOSTILE[case]
    base = model(1)
    parts = dict(compress(codec, moved(base, 2), base)[0])
    meddle(parts)
    with pytest.raises(wire.Unreadable, match=reason):
        expand(codec, parts, base)
