"""A state comes back from its pieces: as it was where it fits, else within what pieces.py says of rounding."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import pieces
from benchmarks.gpu.pieces import PIECE, PIECES, ROUNDINGS, read_state, write_state
from dusss_core.errors import UserError

N = 20_000


def _state(n: int = N) -> dict[str, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    weights = 0.05 * torch.randn(n // 100, 100, generator=draw)
    root = torch.rand(n // 100, 100, generator=draw) ** 6 * 1e-3
    root[0, 0] = 0
    private = {
        "step": torch.tensor(731),
        "optimizer.0.step": torch.tensor(731.0),
        "optimizer.0.exp_avg": 1e-4 * torch.randn(n // 100, 100, generator=draw),
        "optimizer.0.exp_avg_sq": root.square(),
        "objective.teacher.w": weights + 1e-3 * torch.randn(n // 100, 100, generator=draw),
        "objective.teacher.count": torch.tensor(731),
    }
    now = {"w": weights, "count": torch.tensor(731), "b": torch.rand(7, generator=draw)}
    return {"now": now, "private": private, "best": {k: v / 2 for k, v in now.items()}, "vlm": {"w": weights + 1}}


def _equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_where_it_fits_every_bit_comes_back(tmp_path):
    state = _state()
    about = write_state(tmp_path, state)
    assert about["rounding"] == "exact"
    found = read_state(tmp_path, about)
    assert found.keys() == state.keys() and all(_equal(found[group], state[group]) for group in state)


@pytest.mark.parametrize(("largest", "rounding"), [(350_000, ROUNDINGS[1]), (205_000, ROUNDINGS[2])])
def test_what_is_rounded_stays_near(largest, rounding, tmp_path):
    state = _state()
    about = write_state(tmp_path, state, largest)
    assert about["rounding"] == rounding
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= largest
    found = read_state(tmp_path, about)
    assert {g: set(t) for g, t in found.items()} == {g: set(t) for g, t in state.items()}
    assert all(
        v.dtype == state[g][k].dtype and v.shape == state[g][k].shape for g in found for k, v in found[g].items()
    )
    assert _equal(found["vlm"], state["vlm"])
    for key in ("step", "optimizer.0.step", "objective.teacher.count"):
        assert torch.equal(found["private"][key], state["private"][key])
    assert torch.equal(found["now"]["b"], state["now"]["b"])

    def off(name: str, group: str = "private") -> torch.Tensor:
        return (found[group][name] - state[group][name]).abs()

    for group in ("now", "best"):
        weights = state[group]["w"].abs()
        assert (off("w", group) <= weights * 2**-11 + 3e-8).all()
    # a teacher is off by a sixteenth of its distance from the student, and by the student's own rounding
    distance = (state["private"]["objective.teacher.w"] - state["now"]["w"]).abs()
    assert (off("objective.teacher.w") <= distance / 16 + distance.max() / 2e5 + off("w", "now") * 1.01 + 1e-8).all()
    own, root = found["private"]["optimizer.0.exp_avg_sq"].sqrt(), state["private"]["optimizer.0.exp_avg_sq"].sqrt()
    assert torch.equal(own > 0, root > 0)  # a 0 in a denominator would send a weight away
    assert ((own - root).abs() <= root / 16 + root.max() / 2e5).all()
    first = state["private"]["optimizer.0.exp_avg"].abs()
    if rounding == ROUNDINGS[1]:
        assert (off("optimizer.0.exp_avg") <= first / 16 + first.max() / 2e5).all()
    else:
        assert not found["private"]["optimizer.0.exp_avg"].any()


def test_a_piece_of_another_state_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 100_000)
    about = write_state(tmp_path, _state())
    assert about["pieces"] > 2
    piece = tmp_path / "state-2.part"
    content = piece.read_bytes()
    piece.write_bytes(content[:-1] + b"?")
    with pytest.raises(UserError, match="not of the state"):
        read_state(tmp_path, about)
    piece.unlink()
    with pytest.raises(UserError, match="missing"):
        read_state(tmp_path, about)


def test_pieces_of_a_larger_state_do_not_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 100_000)
    write_state(tmp_path, _state())
    about = write_state(tmp_path, {"student": {"w": torch.ones(3)}})
    assert [file.name for file in tmp_path.iterdir()] == ["state-1.part"] and about["pieces"] == 1


def test_a_state_that_fits_in_no_way_is_told(tmp_path):
    with pytest.raises(UserError, match="MB at least"):
        write_state(tmp_path, _state(), largest=1000)


@pytest.mark.slow
def test_the_papers_student_fits_into_what_comes_back(tmp_path):
    """14.75 million parameters with a teacher, and the larger of both vision-language models (3.5 million)."""
    now = {f"w{i}": torch.randn(1_475_200) for i in range(10)}
    private = {f"objective.teacher.{k}": v + 1e-3 for k, v in now.items()}
    for i, value in enumerate(now.values()):
        private |= {f"optimizer.{i}.exp_avg": value * 1e-4, f"optimizer.{i}.exp_avg_sq": value.square() * 1e-8}
    state = {"now": now, "private": private, "best": dict(now), "vlm": {"w": torch.randn(3_500_000)}}
    about = write_state(tmp_path, state)
    files = list(tmp_path.iterdir())
    assert len(files) == about["pieces"] <= PIECES and max(file.stat().st_size for file in files) <= PIECE == 15_000_000
