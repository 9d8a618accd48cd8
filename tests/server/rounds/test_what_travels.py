"""Only what is trained travels, in either direction: read from the bytes of every message."""

from __future__ import annotations

import pytest
import torch
from flwr.app import Message
from flwr.common.serde import message_to_proto
from safetensors.torch import load_file

from dusss_core.phases import Phase
from dusss_core.text.encoder import locate
from dusss_core.training import initial_shared
from feddusss import wire
from feddusss.compression import Codec, compress
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
def test_of_an_encoder_with_adapters_the_adapters_travel_and_the_weights_below_them_do_not(messages, tmp_path):
    study = make_study(
        pretrain__rounds=1,
        segment__rounds=1,
        vlm__text={"tuning": "lora", "lora_rank": 4},
        simulation__threads=1,
        pretrain__batch=4,
    )
    simulate(study, tmp_path, reporter=Reporter())
    assert any(b"lora_A" in message and b"lora_B" in message for message in messages)
    assert found(weights_of_the_encoder(), messages) == set()


@pytest.mark.parametrize("wire_type", ["float32", "int8"])
def test_adapters_are_all_that_a_text_encoder_adds_to_the_bytes(wire_type):
    """MiniLM: 6 layers, two projections of 384 x 384 each, rank 8: 73,728 numbers of 22.6 million."""
    sizes = {}
    for tuning in ("frozen", "lora"):
        model = initial_shared(make_study(vlm__text={"tuning": tuning}), Phase.PRETRAIN)
        if wire_type == "int8":
            model = compress(Codec("int8"), model, model)[0]
        sizes[tuning] = wire.size(wire.pack(model))
    numbers = 6 * 2 * 8 * (384 + 384)
    names_and_types = 2 * 24 * 200
    more = sizes["lora"] - sizes["frozen"]
    each = {"float32": 4, "int8": 1 + 4 / 256}[wire_type]
    assert numbers * each <= more <= numbers * each + names_and_types


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_bfloat16_and_int8_shrink_what_travels_each_way_and_hardly_move_the_figures(tmp_path):
    summaries = {}
    for kind in ("float32", "bfloat16", "int8"):
        study = make_study(segment__rounds=3, federation={"wire": kind}, method={"preset": "mean_teacher"})
        summaries[kind] = simulate(study, tmp_path / kind, reporter=Reporter())
    for kind, low, high in (("bfloat16", 0.45, 0.6), ("int8", 0.25, 0.35)):
        # statistics and names do not shrink; the first round goes down whole
        for way, first in (("bytes_up_per_round", 0), ("bytes_down_per_round", (kind == "int8") / 3)):
            share = summaries[kind][way]["segment"] / summaries["float32"][way]["segment"]
            assert low < (share - first) / (1 - first) < high, (kind, way)
        dice = [summaries[wire_type]["global"]["dice_mean"] for wire_type in ("float32", kind)]
        assert dice[0] == pytest.approx(dice[1], abs=0.02)
