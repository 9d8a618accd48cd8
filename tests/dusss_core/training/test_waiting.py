"""A step asks its device for work and waits for nothing; what it reports is read a step later, in one go."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dusss_core import pretraining
from dusss_core.config import PrivateTrainingConfig
from dusss_core.errors import NotFinite
from dusss_core.objectives import reads_sentences
from dusss_core.phases import Phase
from dusss_core.privacy.pretrain import PrivatePretrainer
from dusss_core.privacy.public import public_captions
from dusss_core.privacy.segment import PrivateSegmenter
from dusss_core.text.bank import TextBank, _Wordings
from dusss_core.training import Pretrainer, Segmenter, initial_shared
from dusss_core.training.trainer import PhaseTrainer
from dusss_core.transfer import Figures, sent
from tests.dusss_core.conftest import make_config, make_split
from tests.dusss_core.objectives.sites import METHODS, config_of, pictures
from tests.dusss_core.training.strict_device import STRICT, strict, watched

CPU = torch.device("cpu")


def trains_without_waiting(trainer: PhaseTrainer, read: list[dict[str, float]]) -> None:
    for number in (1, 2):
        with watched():
            means = trainer.train_round(number)
        assert means["n_steps"] == trainer.steps_per_round == len(read) == 1
        assert means["loss"] == 1
        read.clear()


@pytest.mark.parametrize(("name", "classes"), [*((name, 1) for name in METHODS), ("dusss", 2)])
def test_no_step_of_any_method_waits_for_its_device(name, classes, monkeypatch):
    config, train = config_of(name, classes=classes), pictures(n=8, classes=classes)
    logits = np.zeros((len(train), config.image.outputs, 32, 32), np.float16) if config.method.text_mask else None
    read = strict(monkeypatch)
    text = made_up_text(train.sentences, STRICT) if reads_sentences(config) else None
    trains_without_waiting(Segmenter(config, "a", train, train, text_logits=logits, text=text, device=STRICT), read)


PRETRAINING = {
    "all on": {},
    "two classes": {"image": {"size": 32, "classes": 2}},
    "paper": {"method": {"preset": "paper"}},
    "FedProx": {"prox_mu": 0.1},
    **{name: {"method": {"pretraining": name}} for name in pretraining.TABLE if name != "dusss"},
}


@pytest.mark.parametrize(("case", "labelled"), [*((case, 4) for case in PRETRAINING), ("all on", 0)])
def test_no_step_of_pretraining_waits_for_its_device(case, labelled, monkeypatch):
    config, train = make_config(**PRETRAINING[case]), make_split(n=6, labelled=labelled)
    text = made_up_text(train.sentences, STRICT)
    read = strict(monkeypatch)
    trains_without_waiting(Pretrainer(config, "a", train, train, text, device=STRICT), read)


PRIVATE = {"sample_rate": 0.5, "steps_per_round": 1}


def test_no_private_step_waits_for_its_device(monkeypatch):
    config = config_of("dusss", norm="group").model_copy(update={"privacy": PrivateTrainingConfig(**PRIVATE)})
    logits = np.zeros((12, 1, 32, 32), np.float16)
    strict(monkeypatch)
    trainer = PrivateSegmenter(config, "a", pictures(), pictures(), text_logits=logits, records=12, device=STRICT)
    with watched():
        assert trainer.train_round(1) == {"n_steps": 1.0}


@pytest.mark.parametrize("kind", ["public_negatives", "groups"])
def test_a_private_step_of_pretraining_waits_once_for_whether_a_buffer_changed(kind, monkeypatch):
    config, waits = make_config(privacy={**PRIVATE, "pretrain": kind}), []
    text, public = (made_up_text(sentences, STRICT) for sentences in (make_split().sentences, public_captions()))
    strict(monkeypatch)
    monkeypatch.setattr("dusss_core.privacy.step._differ", lambda before, after: waits.append(len(before)))
    trainer = PrivatePretrainer(
        config, "a", make_split(), make_split(), text, records=1000, public_text=public, device=STRICT
    )
    with watched():
        assert trainer.train_round(1) == {"n_steps": 1.0}
    assert len(waits) == 1 and waits[0] > 0


def made_up_text(sentences: tuple[str, ...], device: torch.device) -> TextBank:
    """Features that say nothing."""
    words = _Wordings(sentences, views=3)
    tokens = torch.zeros(len(words.texts), 8, 384, dtype=torch.float16)
    return TextBank(words, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), device)


def test_no_step_that_trains_the_text_encoder_waits_for_its_device(tiny_bert, monkeypatch):
    config = make_config(
        vlm={
            "image_encoder": "test_resnet",
            "dim": 16,
            "decoder_width": 16,
            "patch_stride": 8,
            "text": {"encoder": str(tiny_bert), "tuning": "full"},
        }
    )
    read = strict(monkeypatch)
    train = make_split(n=6)
    trains_without_waiting(Pretrainer(config, "a", train, train, None, device=STRICT), read)


WAITS = {
    "a number is read": lambda x: x.sum().item(),
    "a branch is taken": lambda x: bool((x > 0).any()),
    "pixels are chosen by a mask": lambda x: x[x > 0],
    "what is not zero is counted": lambda x: x.nonzero(),
    "distinct values are looked for": lambda x: x.unique(),
    "a result comes back": lambda x: x.cpu(),
    "a tensor is copied and waited for": lambda x: x + torch.ones(3).to(x.device),
    "a tensor is copied in place and waited for": lambda x: x.clone().copy_(torch.ones(3)),
    "numbers of the host become a tensor there": lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=x.device),
    "numbers of the host become a tensor like one there": lambda x: x + x.new_tensor([1.0, 2.0, 3.0]),
    "tensors of two devices meet": lambda x: x + torch.ones(3),
}


@pytest.mark.parametrize("way", WAITS)
def test_the_strict_device_catches(way):
    there = torch.zeros(3, device=STRICT)
    WAITS[way](torch.zeros(3))
    with watched(), pytest.raises((AssertionError, NotImplementedError, RuntimeError)):
        WAITS[way](there)
    with watched():
        assert (there + sent(STRICT, torch.ones(3))[0]).shape == (3,)


def test_a_device_has_the_next_step_to_do_before_the_figures_of_one_are_read(monkeypatch):
    happened = []
    strict(monkeypatch)
    trainer = Segmenter(config_of("dusss", epochs=2), "a", pictures(), pictures(), device=STRICT)
    losses = trainer.losses
    monkeypatch.setattr(trainer, "losses", lambda *given: happened.append("asked") or losses(*given))
    trainer.progress = lambda step, steps, loss: happened.append(f"read {step} of {steps}")
    trainer.train_round(1)
    assert happened == [
        "asked",
        *("asked", "read 1 of 4"),
        *("asked", "read 2 of 4"),
        *("asked", "read 3 of 4"),
        "read 4 of 4",
    ]


@pytest.mark.parametrize("device", [CPU, STRICT])
def test_a_step_that_is_not_finite_ends_the_round_with_its_own_place(device, monkeypatch):
    if device == STRICT:
        strict(monkeypatch)
    reading, read = Figures.read, []

    def third_is_not(figures):
        read.append(reading(figures))
        return {**read[-1], "loss": math.inf} if len(read) == 3 else read[-1]

    monkeypatch.setattr(Figures, "read", third_is_not)
    trainer = Segmenter(config_of("dusss", epochs=3), "a", pictures(), pictures(), device=device)
    assert trainer.steps_per_round > 4
    with pytest.raises(NotFinite, match="site a, phase segment, round 2, step 3: the loss is inf") as error:
        trainer.train_round(2)
    assert "lower segment.optimizer.lr (now 0.01)" in str(error.value)


def test_a_round_that_was_not_finite_leaves_nothing_once_the_state_before_is_loaded():
    config, train = config_of("dusss"), pictures()
    whole, broken = (Segmenter(config, "a", train, train) for _ in range(2))
    for trainer in (whole, broken):
        trainer.load_shared(initial_shared(config, Phase.SEGMENT))
        trainer.train_round(1)
    shared, private = broken.shared(), broken.private()
    losses = broken.losses
    broken.losses = lambda *given: (math.nan * losses(*given)[0], {})
    with pytest.raises(NotFinite):
        broken.train_round(2)
    broken.losses = losses
    broken.load_private(private)
    broken.load_shared(shared)
    assert broken.train_round(2) == whole.train_round(2)
    for name, tensor in whole.shared().items():
        assert torch.equal(tensor, broken.shared()[name])
