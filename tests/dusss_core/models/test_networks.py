"""The networks whose decoders are compared: counted exactly, and alike but for how they raise the resolution."""

from __future__ import annotations

import functools
import typing

import pytest
import torch
from torch import nn

from dusss_core.build import build_student
from dusss_core.config import TrainingConfig
from dusss_core.models.decoders import DecoderKind, Raise, raise_resolution
from dusss_core.models.pixel_heads import PixelHeads
from dusss_core.models.small_unet import SmallUNet
from dusss_core.models.unet import UNet
from dusss_core.objectives import TABLE, objective_of, with_objective
from tests.dusss_core.conftest import make_config
from tests.dusss_core.objectives.sites import network_for

KINDS: tuple[DecoderKind, ...] = typing.get_args(DecoderKind)
NETWORKS = {"unet": functools.partial(UNet, width=4), "small_unet": SmallUNet}
OWN = {"unet": "transposed", "small_unet": "bilinear"}


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def study(objective: str, network: str, **changes) -> TrainingConfig:
    return make_config(method={"objective": objective}, student={"width": 4, "network": network}, **changes)


@pytest.mark.parametrize(
    ("into", "out", "objective", "parameters"),
    [
        (1, 2, "dusss", 1_813_474),
        (1, 1, "dusss", 1_813_329),
        (3, 1, "dusss", 1_813_617),
        (3, 2, "dusss", 1_813_762),
        (1, 2, "bcp", 1_813_474),
        (1, 2, "mcnet_v1", 2_577_044),
        (1, 1, "mcnet_v1", 2_576_754),
        (3, 1, "mcnet_v1", 2_577_042),
        (1, 2, "mcnet", 3_210_054),
        (1, 1, "mcnet", 3_209_619),
        (3, 1, "mcnet", 3_209_907),
        (1, 2, "cct", 3_712_504),
        (1, 1, "cct", 3_711_924),
        (3, 1, "cct", 3_712_212),
        (3, 2, "cct", 3_712_792),
        (1, 1, "ssnet", 1_819_475),
        (3, 1, "ssnet", 1_819_763),
        (1, 1, "ucmt", 2 * 1_813_329),
        (3, 1, "ucmt", 2 * 1_813_617),
    ],
)
def test_the_small_unet_has_the_published_number_of_parameters(into, out, objective, parameters):
    config = study(objective, "small_unet")
    with torch.device("meta"):
        if out == 1:  # with two channels no study is built
            config.image.channels = into
            assert count(build_student(config)) == parameters
        else:
            assert count(SmallUNet(into, out, others=objective_of(config).builds(config))) == parameters


def test_two_channels_with_the_heads_of_both_classes_and_two_copies_have_as_many_as_published():
    with torch.device("meta"):
        ssnet = SmallUNet(1, 2), PixelHeads(16, classes=2)
        assert sum(map(count, ssnet)) == 1_821_926
        assert 2 * count(SmallUNet(3, 2)) == 3_627_524


@pytest.mark.parametrize("classes", [1, 2])
def test_there_are_two_selectors_for_each_class_but_the_background(classes):
    heads = build_student(study("ssnet", "unet", image={"size": 32, "classes": classes})).pixel_heads
    assert len(heads.selectors) == len(heads.stored_selectors) == classes
    projected, predicted = heads(torch.rand(2, 4, 7, 1))
    assert projected.shape == predicted.shape == (2, 32, 7, 1)


def test_pixels_are_compared_on_the_map_that_the_head_reads():
    for network in ("unet", "small_unet", "encoder"):
        student = started("ssnet", network, 1).eval()
        x = torch.rand(2, 1, 32, 32)
        with torch.no_grad():
            logits, features = student.with_features(x)
            assert torch.equal(logits, student(x)) and features.shape == (2, student.feature_width, 32, 32)
            if network != "encoder":
                assert torch.equal(student.head(features), logits)


def test_public_weights_reach_the_way_down_of_both_copies(monkeypatch):
    given = []
    monkeypatch.setattr("dusss_core.build.load_encoder_weights", lambda encoder, *_: given.append(encoder))
    student = started("ucmt", "encoder", 1, weights="imagenet")
    assert given == [student.encoder, student.second.encoder]


def test_the_papers_unet_has_as_many_as_the_paper_says():
    with torch.device("meta"):
        assert count(UNet(3, 1)) == 14_751_873
        mse = TrainingConfig(method={"objective": "mean_teacher_mse"}, image={"channels": 3})
        assert count(build_student(mse)) == 14_751_873


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("objective", [name for name in TABLE if network_for({"objective": name}) == "unet"])
def test_the_deployed_decoder_is_that_of_the_plain_network_whatever_is_built_beside_it(objective, network):
    config = study(objective, network)
    plain, compared = build_student(with_objective(config, "dusss")), build_student(config)
    weights = plain.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in compared.state_dict().items() if name in weights)
    beside = ("others.", "pixel_heads.", "second.")
    assert all(name in weights or name.startswith(beside) for name in compared.state_dict())
    assert len(compared.others) == len([kind for kind in objective_of(config).builds(config) if kind in KINDS])
    x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = plain.eval()(x)
        answers = compared.eval().all_logits(x)
        assert torch.equal(compared(x), wanted) and torch.equal(answers[0], wanted)
    assert [answer.shape for answer in answers] == [(2, 1, 32, 32)] * (1 + len(compared.others))
    # each starts from weights of its own
    assert not any(torch.equal(answer, wanted) for answer in answers[1:])


@pytest.mark.parametrize("network", NETWORKS)
def test_decoders_differ_in_how_they_raise_the_resolution_and_in_nothing_else(network):
    student = NETWORKS[network](1, 1, others=KINDS)
    main = {name: value for name, value in student.state_dict().items() if name.startswith(("up.", "head."))}
    for kind, decoder in zip(KINDS, student.others, strict=True):
        for block, of_main in zip(decoder.up, student.up, strict=True):
            assert isinstance(block.raise_resolution, nn.ConvTranspose2d) == (kind == "transposed")
            assert getattr(block.raise_resolution, "kind", "transposed") == kind
            assert str(block.convs) == str(of_main.convs)
        assert str(decoder.head) == str(student.head)
        same = {name: value for name, value in main.items() if name in decoder.state_dict()}
        assert all("raise_resolution" in name for name in main.keys() ^ decoder.state_dict().keys())
        decoder.load_state_dict(same, strict=False)
    # with the main decoder's weights, only those of another kind answer otherwise
    with torch.no_grad():
        answer, *others = student.eval().all_logits(torch.rand(1, 1, 32, 32))
    assert {kind for kind, other in zip(KINDS, others, strict=True) if torch.equal(other, answer)} == {OWN[network]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resolution_is_doubled_as_the_kind_says(kind):
    layer = raise_resolution(kind, 2, 3)
    x = torch.arange(8.0).view(1, 2, 2, 2)
    assert layer(x).shape == (1, 3, 4, 4)
    if kind == "transposed":
        assert layer.kernel_size == layer.stride == (2, 2)
        return
    assert isinstance(layer, Raise) and layer.conv.kernel_size == (1, 1)
    low, high = layer.conv(x), layer(x)
    if kind == "nearest":
        torch.testing.assert_close(high, low.repeat_interleave(2, -1).repeat_interleave(2, -2))
    else:  # corners stay corners, thirds between them
        torch.testing.assert_close(high[..., ::3, ::3], low)
        torch.testing.assert_close(high[..., 0, 1], (2 * low[..., 0, 0] + low[..., 0, 1]) / 3)


@pytest.mark.parametrize("network", NETWORKS)
def test_with_group_norm_no_buffer_travels_and_records_stand_alone(network):
    student = NETWORKS[network](1, 3, norm="group", others=KINDS)
    assert not list(student.buffers()) and not any(isinstance(m, nn.BatchNorm2d) for m in student.modules())
    x = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        for together, alone in zip(student.eval().all_logits(x), student.all_logits(x[:1]), strict=True):
            torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_the_small_unet_drops_out_on_its_way_down_in_training_alone():
    network = SmallUNet(1, 1, others=("nearest",))
    rates = {name: m.p for name, m in network.named_modules() if isinstance(m, nn.Dropout) and m.p}
    assert list(rates.values()) == [0.05, 0.1, 0.2, 0.3, 0.5] and all(name.startswith("down.") for name in rates)
    x = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


def test_the_encoder_runs_once_for_all_decoders():
    network = UNet(1, 1, width=4, others=KINDS)
    runs = []
    network.stem.register_forward_hook(lambda *_: runs.append(1))
    assert len(network.all_logits(torch.rand(1, 1, 32, 32))) == 4 and len(runs) == 1


def heads(student: nn.Module) -> list[nn.Module]:
    main = getattr(student.head, "pixel", student.head)
    second = heads(student.second) if hasattr(student, "second") else []
    return [main, *(decoder.head for decoder in getattr(student, "others", ())), *second]


STUDENTS = [("dusss", "unet"), ("mcnet", "unet"), ("cct", "small_unet"), ("dusss", "encoder"), ("ucmt", "unet")]


def started(objective: str, network: str, classes: int, **settings) -> nn.Module:
    kind = {"encoder": "test_resnet"} if network == "encoder" else {"network": network}
    image = {"size": 32, "classes": classes}
    return build_student(
        make_config(image=image, method={"objective": objective}, student={"width": 4, **kind, **settings})
    )


@pytest.mark.parametrize(("objective", "network"), STUDENTS)
@pytest.mark.parametrize("classes", [1, 2])
def test_a_student_that_starts_from_background_calls_nothing_foreground(objective, network, classes):
    student = started(objective, network, classes, mask_bias=-2.0).eval()
    foreground = slice(None) if classes == 1 else slice(1, None)
    for head in heads(student):
        assert (head.bias[foreground] == -2).all() and (classes == 1 or head.bias[0] == 0)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        logits = student(torch.randn(4, 1, 32, 32, generator=draw))
    called = logits[:, 0] > 0 if classes == 1 else logits.argmax(dim=1) > 0
    assert called.float().mean() < 0.02


@pytest.mark.parametrize(("objective", "network"), STUDENTS)
def test_a_student_without_a_mask_bias_starts_as_its_layers_do_and_differs_in_nothing_else(objective, network):
    biased, plain = (started(objective, network, 1, mask_bias=bias) for bias in (-5.0, None))
    before, own = dict(biased.named_parameters()), dict(plain.named_parameters())
    differ = {name for name in own if not torch.equal(before[name], own[name])}
    ids = {id(head.bias) for head in heads(biased)}
    assert differ == {name for name, value in before.items() if id(value) in ids}
    assert len(differ) == len(heads(biased))
