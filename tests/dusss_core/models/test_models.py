"""The networks are what the paper says, and any timm encoder fits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dusss_core.build import build_student, build_vlm
from dusss_core.errors import UserError
from dusss_core.models import Teacher, UNet
from dusss_core.models.encoder_student import PyramidHead
from dusss_core.models.image_tower import build_encoder
from tests.dusss_core.conftest import FakeBank, make_config


def test_student_is_the_papers_unet():
    student = UNet(3, 1, 64).eval()
    assert sum(p.numel() for p in student.parameters()) == 14_751_873
    assert usual_count(student, torch.zeros(1, 3, 224, 224)) / 1e9 == pytest.approx(25.19, rel=0.005)


@torch.no_grad()
def usual_count(model, picture):
    """Multiply-accumulates as papers count them: transposed convolutions as dense ones, two per normalised value."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        if isinstance(module, nn.BatchNorm2d):
            total += 2 * output.numel()
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            total += output.numel() * module.in_channels * module.kernel_size[0] * module.kernel_size[1]

    for module in model.modules():
        module.register_forward_hook(count)
    model(picture)
    return total


def test_group_norm_student_has_no_buffers():
    assert not list(UNet(1, 1, 8, "group").buffers())


def test_builds_are_equal_and_leave_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = build_student(make_config()), build_student(make_config())
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = build_student(make_config(seed=2))
    assert not torch.equal(first.stem[0].weight, other.stem[0].weight)


def test_teacher_follows_eq_12_with_buffers():
    student = UNet(1, 1, 4)
    teacher = Teacher(student)
    start = {name: value.clone() for name, value in teacher.model.state_dict().items()}
    with torch.no_grad():
        for value in [*student.parameters(), *student.buffers()]:
            value.add_(1)
    teacher.follow(student, step=3, ema=0.99)  # alpha = 1 - 1/4
    for name, value in teacher.model.state_dict().items():
        moved = 1.0 if not value.is_floating_point() else 0.25
        assert torch.allclose(value.float(), start[name].float() + moved, atol=1e-6), name
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not teacher.model.training


@pytest.mark.parametrize("follows_buffers", [True, False])
def test_a_teacher_follows_to_the_last_bit_as_tensor_by_tensor(follows_buffers):
    student = UNet(1, 1, 4)
    teacher, plain = Teacher(student), Teacher(student)
    teacher.follows_buffers = follows_buffers
    draw = torch.Generator().manual_seed(0)
    for step in range(4):
        with torch.no_grad():
            for value in [*student.parameters(), *student.buffers()]:
                value.add_(torch.randn(value.shape, generator=draw).to(value.dtype) if value.ndim else 1)
        teacher.follow(student, step, 0.6)
        alpha, own = min(1 - 1 / (step + 1), 0.6), plain.model.state_dict()
        for name, value in student.state_dict().items():
            if follows_buffers or name in dict(student.named_parameters()):
                own[name].lerp_(value, 1 - alpha) if value.is_floating_point() else own[name].copy_(value)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, teacher.model.state_dict()[name]), name


def test_a_teacher_follows_whichever_student_it_is_shown():
    first, second = UNet(1, 1, 4), UNet(1, 1, 4)
    teacher = Teacher(first)
    for student in (first, second, first):
        teacher.follow(student, 0, 0.9)  # alpha = 0: a copy
        assert torch.equal(teacher.model.head.weight, student.head.weight)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize(("classes", "outputs"), [(1, 1), (2, 3)])
def test_any_timm_encoder_grounds_at_full_resolution(name, classes, outputs):
    config = make_config(
        image={"size": 64, "classes": classes, "channels": 3},
        vlm={"image_encoder": name, "dim": 16, "decoder_width": 16},
    )
    vlm = build_vlm(config).eval()
    tokens, mask = FakeBank().features(torch.tensor([0, 1]))
    assert vlm(torch.zeros(2, 3, 64, 64), tokens, mask).shape == (2, outputs, 64, 64)


def test_text_guided_masks_start_from_the_bias_that_is_set():
    vlm = make_config().vlm.model_dump()
    low, literal = (build_vlm(make_config(vlm={**vlm, "mask_bias": bias})).grounding for bias in (-2.0, 0.0))
    assert torch.equal(low.bias, torch.tensor([-2.0])) and torch.equal(literal.bias, torch.tensor([0.0]))
    # nothing else differs
    same = [torch.equal(a, b) for a, b in zip(low.parameters(), literal.parameters(), strict=True)]
    assert same.count(False) == 1


@pytest.mark.parametrize("switch", ["skips", "cross_attention"])
def test_grounding_switches_take_their_part_away(switch):
    parts = {"image_encoder": "test_resnet", "dim": 16, "decoder_width": 16}
    with_part = build_vlm(make_config(vlm=parts))
    without = build_vlm(make_config(vlm={**parts, switch: False}))
    assert sum(p.numel() for p in without.parameters()) < sum(p.numel() for p in with_part.parameters())


def test_mask_depends_on_the_sentence():
    vlm = build_vlm(make_config()).eval()
    picture = torch.rand(1, 1, 32, 32)
    masks = [vlm(picture, *FakeBank().features(torch.tensor([i]))) for i in (0, 1)]
    assert not torch.allclose(*masks)


def test_unknown_encoder_is_named_with_others_that_exist():
    with pytest.raises(UserError, match="no model 'resnet_18x'"):
        build_vlm(make_config(vlm={"image_encoder": "resnet_18x"}))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "tf_efficientnet_lite0"])
@pytest.mark.parametrize(("size", "classes", "outputs"), [(64, 1, 1), (112, 2, 3)])
def test_any_timm_encoder_makes_a_student_at_full_resolution(name, size, classes, outputs):
    image = {"size": size, "classes": classes, "channels": 3}
    student = build_student(make_config(image=image, student={"encoder": name, "width": 4})).eval()
    assert student(torch.zeros(2, 3, size, size)).shape == (2, outputs, size, size)


def test_a_students_head_sees_the_decoder_and_every_level_of_its_encoder():
    student = build_student(make_config(student={"encoder": "test_resnet", "width": 4})).eval()
    student.head.requires_grad_(True)
    student(torch.rand(2, 1, 32, 32)).square().mean().backward()
    assert len(student.head.levels) == len(student.strides)
    assert all(level.weight.grad.abs().sum() > 0 for level in student.head.levels)
    assert student.head.pixel.weight.grad.abs().sum() > 0


def test_hidden_units_of_a_head_add_nothing_until_they_are_trained():
    torch.manual_seed(0)
    linear, hidden = (
        build_student(make_config(student={"encoder": "test_resnet", "width": 4, "hidden": units})).eval()
        for units in (0, 16)
    )
    missing = hidden.load_state_dict(linear.state_dict(), strict=False).missing_keys
    assert missing and all(name.startswith("head.hidden.") for name in missing)
    picture = torch.randn(2, 1, 32, 32)
    assert torch.equal(linear(picture), hidden(picture))


def test_hidden_units_tell_what_no_linear_head_tells():
    # foreground where either of two features is on, and not both, in cells of 4 x 4 pixels
    on = (torch.rand(8, 2, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5).repeat_interleave(4, 2)
    pixels = on.repeat_interleave(4, 3).float()
    mask = (pixels.sum(1, keepdim=True) == 1).float()
    losses = []
    for units in (0, 8):
        torch.manual_seed(0)
        head = PyramidHead([], 2, 1, units)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(300):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(head(pixels, []), mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.6 and losses[1] < 0.35


def test_hidden_units_without_an_encoder_are_refused():
    with pytest.raises(ValueError, match="hidden: 16 is for a student with an encoder"):
        make_config(student={"width": 4, "hidden": 16})


def test_an_unknown_encoder_of_a_student_is_named_by_its_own_key():
    with pytest.raises(UserError, match=r"student\.encoder: timm has no model 'resnet_18x'"):
        build_student(make_config(student={"encoder": "resnet_18x"}))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_050", "resnet18"])
@pytest.mark.parametrize("coarsest", [8, 32])
def test_an_encoder_has_no_weights_beyond_its_coarsest_map(name, coarsest):
    encoder, strides, channels = build_encoder(name, 1, 64, coarsest=coarsest, setting="vlm.image_encoder")
    levels = encoder(torch.randn(2, 1, 64, 64))
    assert [(64 // level.shape[2], level.shape[1]) for level in levels] == list(zip(strides, channels, strict=True))
    sum(level.sum() for level in levels).backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize(("name", "blocks"), [("test_vit", 6), ("vit_tiny_patch16_224", 12)])
def test_a_plain_transformer_keeps_all_its_blocks(name, blocks):
    size = 160 if name == "test_vit" else 224
    encoder, strides, channels = build_encoder(name, 1, size, coarsest=16, setting="vlm.image_encoder")
    assert len(encoder.model.blocks) == blocks and strides == [16] and len(channels) == 1
