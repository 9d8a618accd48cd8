"""An embedding that keeps places can tell left from right; the mean of all patches cannot."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dusss_core.build import build_vlm
from dusss_core.models.cells import PictureCells, SentenceCells, resample
from tests.dusss_core.conftest import make_config


def test_a_mirrored_picture_has_another_embedding_with_cells_and_the_same_without():
    patches = torch.rand(2, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    cells = PictureCells(5, 8, cells=3, cell_dim=4)
    straight, mirrored = cells(patches), cells(patches.flip(3))
    assert (straight.embedding.semantic * mirrored.embedding.semantic).sum(1).max() < 0.99
    torch.testing.assert_close(mirrored.cells, straight.cells.flip(3))


def test_the_cosine_of_picture_and_sentence_is_the_mean_product_of_their_cells():
    picture = PictureCells(5, 8, cells=3, cell_dim=4)(torch.randn(2, 5, 7, 7))
    sentence = SentenceCells(6, 8, cells=3, cell_dim=4)(torch.randn(2, 6))
    cosine = F.cosine_similarity(picture.embedding.semantic, sentence.embedding.semantic)
    torch.testing.assert_close(cosine, (picture.cells * sentence.cells).mean((1, 2, 3)))


@pytest.mark.parametrize("length", [3, 4, 7, 8, 14])
@pytest.mark.parametrize("side", [1, 3, 7, 8])
def test_a_map_of_another_size_keeps_its_mean_and_its_places(length, side):
    x = torch.rand(1, 2, length, length, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = resample(x, side)
    assert y.shape == (1, 2, side, side)
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(resample(x.flip(2), side), y.flip(2))
    if side == length:
        torch.testing.assert_close(y, x)


def test_whole_cells_are_means_of_their_patches():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    torch.testing.assert_close(resample(x, 2), F.avg_pool2d(x, 2))


@pytest.mark.parametrize("cells", [0, 3])
def test_a_text_guided_mask_depends_on_what_contrast_trains_only_with_cells(cells):
    vlm = build_vlm(make_config(vlm={**make_config().vlm.model_dump(), "cells": cells, "cross_attention": False}))
    image, tokens = torch.randn(2, 1, 32, 32), torch.randn(2, 4, 384)
    vlm(image, tokens, torch.ones(2, 4, dtype=torch.bool)).sum().backward()
    semantic = vlm.image.cells.project if cells else vlm.image.head.semantic[0]
    assert (semantic.weight.grad is not None and bool(semantic.weight.grad.abs().sum() > 0)) == (cells > 0)


@pytest.mark.parametrize("factor", [0.0, 0.1, 1.0])
def test_what_is_read_off_teaches_the_networks_below_by_its_factor(factor):
    def gradients(read):
        vlm = {**make_config().vlm.model_dump(), "cells": 3, "cells_read": read}
        model = build_vlm(make_config(vlm=vlm))
        draw = torch.Generator().manual_seed(0)
        image = model.encode_image(torch.rand(2, 1, 32, 32, generator=draw)).embedding.semantic
        text = model.encode_text(torch.rand(2, 4, 384, generator=draw), torch.ones(2, 4, dtype=torch.bool))
        (image * text.embedding.semantic).sum().backward()
        below = (model.image.encoder.parameters(), model.text.project.parameters())
        flat = [
            torch.cat([p.grad.flatten() if p.grad is not None else p.flatten() * 0 for p in some]) for some in below
        ]
        return (*flat, model.image.cells.project.weight.grad)

    # the decoder has one layer less, so that the towers start from the same weights
    *in_full, own = gradients(1.0)
    *below, own_again = gradients(factor)
    torch.testing.assert_close(own_again, own)
    assert own.any() and all(some.any() for some in in_full)
    for some, whole in zip(below, in_full, strict=True):
        torch.testing.assert_close(some, factor * whole)


def test_a_text_guided_mask_does_not_see_what_is_read_off():
    model = build_vlm(make_config(vlm={**make_config().vlm.model_dump(), "cells": 3, "cells_read": 0.0}))
    model(torch.randn(2, 1, 32, 32), torch.randn(2, 4, 384), torch.ones(2, 4, dtype=torch.bool)).sum().backward()
    assert all(p.grad is None for cells in (model.image.cells, model.text.cells) for p in cells.parameters())


@pytest.mark.parametrize("read", [None, 0.0])
def test_what_is_read_off_sees_the_finest_features_too(monkeypatch, read):
    vlm = {**make_config().vlm.model_dump(), "cells": 3, "cells_read": read}
    tower = build_vlm(make_config(vlm=vlm)).image
    levels = tower.encoder(torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    changed = [levels[0] + torch.rand_like(levels[0]), *levels[1:]]
    found = []
    for some in (levels, changed):
        monkeypatch.setattr(tower.encoder, "forward", lambda _, some=some: some)
        found.append(tower(torch.zeros(2, 1, 32, 32)).embedding.semantic)
    assert found[0].allclose(found[1]) == (read is None)
