"""Step 2's host: masks go where their pictures go, and what is not shown is background."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dusss_core.augment import Geometry
from dusss_core.losses.segmentation import probabilities
from dusss_core.training import Segmenter
from tests.dusss_core.conftest import make_config, make_split


@pytest.mark.parametrize("classes", [1, 2])
def test_what_a_moved_picture_does_not_show_is_background(classes):
    config = make_config(image={"size": 32, "classes": classes})
    # everywhere surely foreground, of the last class
    logits = np.full((12, config.image.outputs, 32, 32), -6, np.float16)
    logits[:, -1] = 6
    trainer = Segmenter(config, "a", make_split(), make_split(), text_logits=logits)
    none = torch.zeros(2, dtype=torch.bool)
    shift = torch.tensor([[0.0, 1.0, 0.25, 0.0]]).expand(2, 4)  # to the right by a quarter
    moved = trainer.text_masks(np.array([4, 5]), Geometry(none, none, none, shift))
    target = probabilities(moved)
    foreground = target[:, 0] if classes == 1 else 1 - target[:, 0]
    assert foreground[..., :7].max() < 0.01 and foreground[..., 10:].min() > 0.99
    if classes > 1:
        assert target[:, 0, :, :7].min() > 0.99
