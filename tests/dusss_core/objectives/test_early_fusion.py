"""Early fusion: what the sentence's own picture learns, and that it moves with the picture."""

from __future__ import annotations

import pytest
import torch

from dusss_core.augment import Geometry
from dusss_core.objectives.early_fusion import WEIGHT, drawing_loss
from tests.dusss_core.gradients import assert_same_as_reference
from tests.dusss_core.objectives.sites import config_of, draw, parts, pictures, site


def test_what_is_drawn_is_compared_with_the_picture_where_the_finding_is():
    picture, mask = torch.tensor([[[[0.8, 0.6]]]]), torch.tensor([[[1, 0]]])
    drawn = torch.tensor([0.5, 0.3]).expand(1, 3, 1, 2)
    # |0.5 - 0.8| and |0.3 - 0|
    assert drawing_loss(drawn, picture, mask).item() == pytest.approx(0.3)
    assert drawing_loss(picture.expand(1, 3, 1, 2) * mask[:, None], picture, 2 * mask).item() == 0


def test_the_loss_has_the_gradient_of_its_equation():
    mask = torch.tensor([[[1, 0], [0, 2]]])
    generator = torch.Generator().manual_seed(0)
    drawn, picture = (torch.rand(1, 3, 2, 2, generator=generator) for _ in range(2))

    def reference(drawn, picture):
        return (
            sum(
                (drawn[0, c, i, j] - picture[0, c, i, j] * float(mask[0, i, j] > 0)).abs()
                for c in range(3)
                for i in range(2)
                for j in range(2)
            )
            / 12
        )

    assert_same_as_reference(lambda a, b: drawing_loss(a, b, mask), reference, drawn, picture)


def test_a_mirrored_picture_meets_the_mirrored_drawing_of_its_own_sentence(monkeypatch):
    trainer = site(config_of("early_fusion"), pictures())
    labelled, _, none = parts(trainer)
    everything = Geometry.draw(len(labelled), draw(), flip=False, affine=False)
    everything.flipped[:] = True
    monkeypatch.setattr(trainer, "geometry", lambda count, draw: everything)
    fused, met = trainer.student.fused, []
    monkeypatch.setattr(trainer.student, "fused", lambda x, drawn: met.append(drawn) or fused(x, drawn))
    trainer.losses((labelled, none), draw(), 0.5)
    own = trainer.student.drawn(trainer.words(labelled, draw(), None))
    torch.testing.assert_close(met[0], own.flip(-1))
    assert not torch.allclose(own, own.flip(-1))


def test_the_drawing_weighs_a_tenth():
    trainer = site(config_of("early_fusion"), pictures())
    labelled, _, none = parts(trainer)
    loss, figures = trainer.losses((labelled, none), draw(), 0.5)
    assert WEIGHT == 0.1
    assert loss.item() == pytest.approx(figures["supervised"].item() + 0.1 * figures["drawing"].item())
