"""Only what is trained travels, in either direction: read from the bytes of every message."""

from __future__ import annotations

import pytest
import torch
from flwr.app import Message
from flwr.common.serde import message_to_proto
from safetensors.torch import load_file

from dusss_core.text.encoder import locate
from server.runs.events import Reporter
from server.simulation import inprocess
from server.simulation.simulate import simulate
from tests.server.conftest import make_study


@pytest.fixture
def messages(monkeypatch):
    """The bytes of every message and every answer of the runs that follow."""
    seen: list[bytes] = []

    class Tapped(inprocess.InProcessGrid):
        def _work(self, message: Message) -> Message:
            seen.append(message_to_proto(message).SerializeToString())
            answer = super()._work(message)
            seen.append(message_to_proto(answer).SerializeToString())
            return answer

    monkeypatch.setattr(inprocess, "InProcessGrid", Tapped)
    return seen


def weights_of_the_encoder() -> dict[str, torch.Tensor]:
    return load_file(locate("minilm").folder / "model.safetensors")


def found(weights: dict[str, torch.Tensor], messages: list[bytes]) -> set[str]:
    """Names of the weights a stretch of whose bytes is in a message."""
    stretches = {
        name: tensor.numpy().tobytes()[:256]
        for name, tensor in weights.items()
        if tensor.is_floating_point() and tensor.numel() >= 64 and tensor.float().std() > 0
    }
    assert len(stretches) > 80
    return {name for name, stretch in stretches.items() if any(stretch in message for message in messages)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_frozen_text_encoder_never_travels(messages, tmp_path):
    simulate(make_study(pretrain__rounds=1, segment__rounds=1), tmp_path, reporter=Reporter())
    assert sum(len(message) > 100_000 for message in messages) > 6  # models did travel
    assert found(weights_of_the_encoder(), messages) == set()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_encoder_that_is_trained_along_does_travel(messages, tmp_path):
    """What the test above looks for would be found."""
    study = make_study(
        pretrain__rounds=1, segment__rounds=1, vlm__text={"tuning": "full"}, simulation__threads=1, pretrain__batch=4
    )
    simulate(study, tmp_path, reporter=Reporter())
    assert len(found(weights_of_the_encoder(), messages)) > 80


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bfloat16_halves_what_travels_each_way_and_hardly_moves_the_figures(tmp_path):
    summaries = {}
    for wire in ("float32", "bfloat16"):
        study = make_study(segment__rounds=3, federation={"wire": wire}, method={"preset": "mean_teacher"})
        summaries[wire] = simulate(study, tmp_path / wire, reporter=Reporter())
    for way in ("bytes_up_per_round", "bytes_down_per_round"):
        share = summaries["bfloat16"][way]["segment"] / summaries["float32"][way]["segment"]
        assert 0.45 < share < 0.6, way  # statistics and names do not shrink
    dice = [summaries[wire]["global"]["dice_mean"] for wire in summaries]
    assert dice[0] == pytest.approx(dice[1], abs=0.02)
