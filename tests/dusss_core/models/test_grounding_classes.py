"""With several classes, the background of a text-guided mask is where none of them is, whatever the sentence says."""

from __future__ import annotations

import pytest
import torch

from dusss_core.build import build_vlm
from tests.dusss_core.conftest import make_config

VLM = {"image_encoder": "test_resnet", "dim": 16, "decoder_width": 16, "patch_stride": 8}


def grounded(classes: int, scale: float = 1.0) -> torch.Tensor:
    vlm = build_vlm(make_config(image={"size": 32, "classes": classes}, vlm=VLM)).eval()
    draw = torch.Generator().manual_seed(0)
    tokens, mask = scale * torch.randn(8, 5, 384, generator=draw), torch.ones(8, 5, dtype=torch.bool)
    with torch.no_grad():
        return vlm(torch.rand(8, 1, 32, 32, generator=draw), tokens, mask)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_background_has_a_logit_of_0_for_every_sentence(classes):
    logits = grounded(classes)
    assert logits.shape == (8, classes + 1, 32, 32)
    assert (logits[:, 0] == 0).all()
    assert logits[:, 1:].std() > 0


def test_several_classes_start_from_background_as_one_does():
    one, several = grounded(1), grounded(3)
    assert (one > 0).float().mean() < 0.01
    assert (several.argmax(dim=1) > 0).float().mean() < 0.01
    foreground = 1 - several.softmax(dim=1)[:, 0]
    assert 0.5 * 3 < foreground.mean() / one.sigmoid().mean() < 3.5


def test_classes_start_from_different_logits():
    logits = grounded(3)[:, 1:]
    assert not torch.allclose(logits[:, 0], logits[:, 1])
