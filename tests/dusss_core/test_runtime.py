"""`runtime: auto`: each site chooses by its device, and the settings of old studies mean what they meant."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dusss_core import runtime
from dusss_core.config import RuntimeConfig, TrainingConfig
from dusss_core.phases import Phase
from dusss_core.runtime import Runtime, runtime_of, tune
from dusss_core.training import Pretrainer, Segmenter, evaluate_student, initial_shared, text_guided_masks
from tests.dusss_core.conftest import make_config, make_split

AUTO = RuntimeConfig(amp="auto", channels_last="auto", eval_batch="auto")


def study(image=224, given="auto", **student) -> TrainingConfig:
    return TrainingConfig(image={"size": image}, student=student, runtime=given)


@pytest.fixture
def has_bfloat16(monkeypatch):
    monkeypatch.setattr(runtime, "has_bfloat16_instructions", lambda: True)


def test_auto_is_auto_for_every_setting_and_travels():
    config = study()
    assert config.runtime == AUTO
    assert TrainingConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError, match="amp"):
        study(given={"amp": "sometimes"})


def test_what_an_old_study_says_is_what_is_done(has_bfloat16):
    for phase in Phase:
        assert runtime_of(study(given={}), phase, "cpu")[:2] == (False, False)
        given = {"amp": True, "channels_last": True, "eval_batch": 5}
        assert runtime_of(study(given=given, width=4), phase, "cpu") == Runtime(True, True, 5)


@pytest.mark.parametrize(
    ("student", "pays"),
    [
        ({"width": 8}, False),
        ({"width": 16}, True),
        ({"width": 64}, True),
        ({"network": "small_unet", "width": 4}, True),
        ({"encoder": "tf_efficientnet_lite0", "width": 64}, False),
    ],
)
def test_a_cpu_with_the_instructions_takes_bfloat16_where_it_was_measured_faster(student, pays, has_bfloat16):
    assert runtime_of(study(**student), Phase.SEGMENT, "cpu").amp == pays


@pytest.mark.parametrize(("encoder", "pays"), [("resnet18", True), ("mobilenetv3_small_050", False)])
def test_pretraining_takes_bfloat16_with_encoders_of_plain_convolutions(encoder, pays, has_bfloat16):
    config = TrainingConfig(vlm={"image_encoder": encoder}, runtime="auto")
    assert runtime_of(config, Phase.PRETRAIN, "cpu").amp == pays


def test_without_the_instructions_it_stays_at_float32(monkeypatch):
    monkeypatch.setattr(runtime, "has_bfloat16_instructions", lambda: False)
    assert runtime_of(study(), Phase.SEGMENT, "cpu")[:2] == (False, True)
    # nobody has measured this one
    assert runtime_of(study(), Phase.SEGMENT, "mps") == Runtime(False, False, 64)


def test_a_cpu_evaluates_as_many_pictures_at_a_time_as_fit_its_caches():
    batches = {size: runtime_of(study(size), Phase.SEGMENT, "cpu").eval_batch for size in (32, 64, 112, 224, 1024)}
    assert batches == {32: 64, 64: 32, 112: 10, 224: 2, 1024: 1}


def test_cuda_takes_bfloat16_where_it_has_it(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert runtime_of(study(width=4), Phase.PRETRAIN, "cuda:1") == Runtime(has, True, 64)


@pytest.fixture
def switches():
    """Torch's own, put back afterwards."""
    flags, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = flags.allow_tf32, flags.benchmark, products.allow_tf32
    yield flags, products
    flags.allow_tf32, flags.benchmark, products.allow_tf32 = before


def test_kernels_are_tried_where_the_runtime_is_chosen_by_the_device_and_losses_keep_float32(switches):
    flags, products = switches
    products.allow_tf32 = True
    tune(study(), torch.device("cpu"))
    assert products.allow_tf32 and not flags.benchmark
    for given, tries in (("auto", True), ({}, False), ({"amp": "auto"}, True)):
        tune(study(given=given), torch.device("cuda"))
        assert (flags.benchmark, flags.allow_tf32) == (tries, True)
        assert not products.allow_tf32


def test_a_site_that_changes_its_machine_between_rounds_goes_on(monkeypatch):
    """From one without bfloat16 to one with it, and back: moments and teacher are float32 in any layout."""
    train, text_logits = make_split(), np.zeros((12, 1, 32, 32), np.float16)
    config = make_config(runtime="auto", student={"width": 16})
    plain = make_config(runtime={}, student={"width": 16})
    expected, trainer = (Segmenter(plain, "a", train, train, text_logits=text_logits) for _ in range(2))
    shared = initial_shared(plain, Phase.SEGMENT)
    for each in (expected, trainer):
        each.load_shared(shared)
        each.train_round(1)
    for number, instructions in ((2, True), (3, False)):
        monkeypatch.setattr(runtime, "has_bfloat16_instructions", lambda instructions=instructions: instructions)
        shared, private = trainer.shared(), trainer.private()
        trainer = Segmenter(config, "a", train, train, text_logits=text_logits)
        assert trainer.runtime[:2] == (instructions, True)
        trainer.load_private(private)
        trainer.load_shared(shared)
        figures, reference = trainer.train_round(number), expected.train_round(number)
        assert figures["loss"] == pytest.approx(reference["loss"], rel=0.05)
    assert trainer.step == expected.step
    assert {tensor.dtype for tensor in trainer.private().values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize(("given", "changes"), [({}, False), ({"channels_last": True}, False), ("auto", True)])
def test_masks_that_are_trained_on_are_made_as_in_old_studies_where_nothing_is_left_open(given, changes, monkeypatch):
    def in_another_layout(config, model, *rest):
        planes = [p for p in model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
        return [not p.is_contiguous() for p in planes]

    monkeypatch.setattr("dusss_core.training.evaluation.ground_split", in_another_layout)
    config = make_config(runtime=given)
    layouts = text_guided_masks(config, initial_shared(config, Phase.PRETRAIN), make_split(), object())
    assert layouts and set(layouts) == {changes}


@pytest.mark.parametrize("given", [{}, {"channels_last": True}, "auto"])
def test_evaluation_says_the_same_in_any_layout(given, bank):
    train = make_split()
    figures = []
    for how in ({"eval_batch": 64}, given):
        config = make_config(runtime=how)
        vlm = Pretrainer(config, "a", train, train, bank)
        vlm.load_shared(initial_shared(config, Phase.PRETRAIN))
        whole = vlm.shared()
        student = initial_shared(config, Phase.SEGMENT)
        masks = text_guided_masks(config, whole, train, bank)
        figures.append((evaluate_student(config, student, train), masks))
    (first, first_masks), (second, second_masks) = figures
    assert second == pytest.approx(first, rel=1e-3)
    np.testing.assert_allclose(second_masks, first_masks, atol=2e-3)
    assert "hd95" in first and "hd95" not in evaluate_student(config, student, train, distances=False)
