"""A student that is given sentences: what it is told in training, and figures with them beside those without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dusss_core.config import PRESETS, TrainingConfig
from dusss_core.inference import predict_logits
from dusss_core.objectives import misfit, reads_sentences
from dusss_core.phases import Phase
from dusss_core.training import Segmenter, can_train, evaluate_student, initial_shared, told_logits
from server.study.config import StudyConfig
from tests.dusss_core.conftest import FakeBank, make_config, make_split

TOLD = {"early_fusion": "early_fusion", "lvit": "lvit", "vilt": "supervised_with_text"}
"""Network and an objective that gives it sentences."""


def told_config(network: str = "early_fusion", **changes) -> TrainingConfig:
    student = {"width": 4, "network": network, "layers": 2, "patch": 16, **changes.pop("student", {})}
    segment = {"rounds": 2, "batch": 6, "optimizer": {"lr": 1e-2}, **changes.pop("segment", {})}
    return make_config(method={"objective": TOLD[network]}, student=student, segment=segment, **changes)


def told_site(config: TrainingConfig, train=None, bank=None) -> Segmenter:
    train = train or make_split()
    trainer = Segmenter(config, "a", train, train, text=bank or FakeBank())
    trainer.load_shared(initial_shared(config, Phase.SEGMENT))
    return trainer


# ---- who is given sentences ----


def test_only_objectives_that_give_them_to_networks_that_take_them_read_sentences():
    assert all(reads_sentences(told_config(network)) for network in TOLD)
    assert not reads_sentences(make_config())
    # the control of a network, and every other preset of DuSSS on it: it is shown pictures alone
    for preset in PRESETS:
        assert not reads_sentences(make_config(method={"preset": preset}, student={"network": "lvit", "width": 4}))


@pytest.mark.parametrize(
    ("objective", "network", "reason"),
    [
        ("lvit", "unet", "needs one of lvit, vilt"),
        ("early_fusion", "lvit", "needs one of early_fusion"),
        ("supervised_with_text", "small_unet", "needs one of early_fusion, lvit, vilt"),
        ("mcnet", "lvit", "on lvit work supervised_with_text, lvit, lvit_balanced"),
        ("dusss", "lvit", None),
        ("lvit", "vilt", None),
    ],
)
def test_a_network_that_does_not_fit_is_named_when_the_study_is_read(objective, network, reason):
    values = {"image": {"size": 32}, "method": {"objective": objective}, "student": {"network": network}}
    if reason is None:
        assert misfit(StudyConfig.model_validate(values)) is None
        return
    with pytest.raises(ValidationError, match=reason):
        StudyConfig.model_validate(values)


def test_a_text_encoder_that_is_trained_is_refused():
    vlm = {"text": {"tuning": "lora"}}
    assert "set vlm.text.tuning: frozen" in misfit(told_config(vlm=vlm))


def test_patches_that_do_not_fill_the_picture_are_refused():
    with pytest.raises(ValidationError, match="does not divide"):
        make_config(image={"size": 48}, student={"network": "vilt"})


def test_a_site_without_sentences_is_told_so_by_name_and_one_with_some_takes_part():
    config = told_config("lvit")
    silent = replace(make_split(), sentence=np.full(12, -1))
    assert can_train(config, Phase.SEGMENT, silent) == (
        "the site has no sentences, and method.objective lvit gives them to the student"
    )
    assert can_train(config, Phase.SEGMENT, make_split(with_text=1)) is None
    assert can_train(make_config(method={"preset": "supervised"}), Phase.SEGMENT, silent) is None


# ---- what it is told ----


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_mirrored_picture_comes_with_the_mirrored_sentence():
    trainer, bank = told_site(told_config()), FakeBank()
    positions = np.arange(6)
    mirrored = torch.tensor([True, False] * 3)
    told = trainer.words(positions, draw(), mirrored)
    sentence = torch.from_numpy(trainer.train.sentence[positions])
    expected, _ = bank.features(torch.where(mirrored, 1 - sentence, sentence))
    assert torch.equal(told.tokens, expected)


class Stubborn(FakeBank):
    """The first sentence cannot be mirrored, the second may be turned."""

    def may_flip(self, indices):
        return indices != 0

    def may_turn(self, indices):
        return indices == 1


def test_a_picture_is_moved_only_as_its_sentence_can_be():
    trainer = told_site(told_config(segment={"turns": True}), bank=Stubborn())
    positions = np.arange(12).repeat(20)
    geometry = trainer.geometry_told(positions, draw())
    first = torch.from_numpy(trainer.train.sentence[positions]) == 0
    for moved in (geometry.flipped, geometry.upended, geometry.transposed):
        assert not moved[first].any() and 0.3 < moved[~first].float().mean() < 0.7


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_text_dropout_withholds_so_many_sentences(share):
    trainer = told_site(told_config(student={"text_dropout": share}))
    positions = np.arange(12).repeat(100)
    told = trainer.words(positions, draw())
    silent = ~told.tokens.flatten(1).any(1)
    assert silent.float().mean().item() == pytest.approx(share, abs=0.05)
    assert torch.equal(told.mask[silent].sum(1), torch.ones(int(silent.sum()), dtype=torch.long))


def test_without_text_dropout_nothing_is_drawn():
    generator, other = draw(), draw()
    told_site(told_config()).words(np.arange(4), generator)
    assert torch.equal(generator.get_state(), other.get_state())


def test_a_record_without_a_sentence_is_told_nothing():
    trainer = told_site(told_config(), make_split(with_text=6))
    told = trainer.words(np.array([0, 11]), draw())
    assert told.tokens[0].any() and not told.tokens[1].any()


@pytest.mark.parametrize("network", TOLD)
def test_every_such_student_trains_with_fedbn_and_without(network):
    for local_norm in (False, True):
        config = told_config(network, local_norm=local_norm)
        trainer = told_site(config)
        before = trainer.shared()
        assert np.isfinite(trainer.train_round(1)["loss"])
        trainer.load_shared(trainer.shared())
        assert np.isfinite(trainer.train_round(2)["loss"])
        after = trainer.shared()
        still = {key for key in before if torch.equal(before[key], after[key]) and "num_batches" not in key}
        assert not still
        assert any(key.startswith("local.") for key in trainer.private()) == local_norm


# ---- figures ----


def test_figures_with_the_sentence_stand_beside_those_without():
    config, split = told_config(), make_split()
    student = initial_shared(config, Phase.SEGMENT)
    found = evaluate_student(config, student, split, text=FakeBank())
    assert set(found) == {"dice", "iou", "hd95", "n", "text_dice", "text_iou", "text_hd95"}
    assert set(told_site(config).validate()) == {"dice", "iou", "text_dice", "text_iou"}
    silent = replace(split, sentence=np.full(12, -1))
    assert set(evaluate_student(config, student, silent, text=FakeBank())) == {"dice", "iou", "hd95", "n"}


def test_any_other_student_has_the_figures_that_it_had():
    config = make_config(method={"preset": "supervised"}, student={"network": "lvit", "width": 4})
    student = initial_shared(config, Phase.SEGMENT)
    assert set(evaluate_student(config, student, make_split(), text=FakeBank())) == {"dice", "iou", "hd95", "n"}
    assert set(told_site(config).validate()) == {"dice", "iou"}


def test_figures_with_the_sentence_are_those_of_records_that_have_one():
    # all is foreground: right for the pictures without a sentence alone
    config = told_config(student={"mask_bias": 20.0})
    student, some = initial_shared(config, Phase.SEGMENT), make_split(with_text=4)
    some.masks[4:] = 1
    found = evaluate_student(config, student, some, text=FakeBank())
    told = evaluate_student(config, student, some.select(np.arange(4)), text=FakeBank())
    assert found["text_dice"] == told["text_dice"] == told["dice"] < 0.3 < found["dice"] and found["n"] == 12


def test_every_picture_is_told_its_own_sentence_in_batches_of_any_size():
    split = make_split(n=7, with_text=6)
    answers = []
    for batch in (2, 64):
        config = told_config(runtime={"eval_batch": batch}, student={"norm": "group"})
        trainer = told_site(config, split)
        with torch.no_grad():  # so that a sentence makes more of a difference than rounding
            trainer.student.draw[-1].weight.mul_(100)
        answers.append(told_logits(config, trainer.student, split, trainer.text, "cpu"))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-2)
    other = replace(split, sentence=np.where(split.sentence < 0, -1, 1 - split.sentence))
    exchanged = told_logits(config, trainer.student, other, trainer.text, "cpu")
    assert all(np.abs(exchanged[i].astype(float) - answers[1][i]).max() > 0.05 for i in range(6))
    # without a sentence it is the picture alone
    alone = predict_logits(trainer.student, split.images[6:], config.image, "cpu", 4)
    np.testing.assert_allclose(answers[1][6:], alone, atol=1e-2)


def test_every_window_of_a_large_picture_is_told_its_sentence():
    config, small = told_config(), make_split(n=2)
    trainer = told_site(config, small)
    large = [np.tile(picture, (1, 2, 2))[:, :48, :48] for picture in small.images]
    as_list = told_logits(config, trainer.student, replace(small, images=large), trainer.text, "cpu")
    as_array = told_logits(config, trainer.student, replace(small, images=np.stack(large)), trainer.text, "cpu")
    assert [z.shape for z in as_list] == [(1, 48, 48)] * 2
    np.testing.assert_array_equal(np.stack(as_list), as_array)
    for i in range(2):
        silent = predict_logits(trainer.student, [large[i]], config.image, "cpu", 4)[0]
        assert (as_list[i] != silent).any()


@pytest.mark.parametrize("network", TOLD)
def test_a_sentence_that_alone_tells_the_side_is_learnt(network):
    """Pictures of noise: without the sentence nobody can tell."""
    train = make_split(n=16, labelled=16)
    rng = np.random.default_rng(0)
    masks = np.zeros_like(train.masks)
    for i, side in enumerate(train.sentence):
        masks[i, 8:24, 16 * side : 16 * side + 14] = 1
    train = replace(train, images=rng.integers(0, 255, train.images.shape, dtype=np.uint8), masks=masks)
    segment = {"rounds": 1, "epochs": 40, "batch": 8, "optimizer": {"lr": 2e-2}, "flip": False}
    trainer = told_site(told_config(network, segment=segment, student={"width": 8}), train)
    trainer.train_round(1)
    found = trainer.validate()
    assert found["text_dice"] > 0.6 and found["text_dice"] > found["dice"] + 0.1
