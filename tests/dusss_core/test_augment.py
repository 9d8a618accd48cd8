"""Geometry moves picture, mask and logits together; views repeat with their generator and stay in [0, 1]."""

import pytest
import torch

from dusss_core import augment
from dusss_core.augment import Geometry, strong_view, weak_view
from dusss_core.seeds import generator

BATCH, SIZE = 12, 48


def _half_planes():
    """A bright right third, with its mask and its logits."""
    picture = torch.zeros(BATCH, 1, SIZE, SIZE)
    picture[..., 2 * SIZE // 3 :] = 1
    return picture, picture[:, 0].to(torch.uint8), torch.where(picture > 0.5, 4.0, -4.0)


def _smooth():
    down, across = torch.meshgrid(torch.linspace(0, 6, SIZE), torch.linspace(0, 4, SIZE), indexing="ij")
    phase = torch.arange(BATCH)[:, None, None]
    return (0.5 + 0.4 * torch.sin(down + phase) * torch.cos(across))[:, None]


def test_nothing_drawn_changes_no_bit():
    geometry = Geometry.draw(BATCH, generator("identity"), flip=False, turns=False, affine=False)
    picture, mask, logits = (
        torch.rand(BATCH, 3, SIZE, SIZE),
        torch.randint(0, 9, (BATCH, SIZE, SIZE)),
        _smooth(),
    )
    assert torch.equal(geometry.apply(picture), picture)
    assert torch.equal(geometry.apply_mask(mask), mask)
    assert torch.equal(geometry.apply_logits(logits, -3.0), logits)
    assert not geometry.flipped.any()


def test_affine_of_zero_is_the_identity():
    geometry = Geometry.draw(BATCH, generator("zero"), flip=False)
    geometry.affine = torch.tensor([[0.0, 1.0, 0.0, 0.0]]).repeat(BATCH, 1)
    torch.testing.assert_close(geometry.apply(_smooth()), _smooth(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("turns", [False, True])
def test_picture_mask_and_logits_move_together(turns):
    picture, mask, logits = _half_planes()
    geometry = Geometry.draw(BATCH, generator("together"), flip=True, turns=turns)
    moved, moved_mask, moved_logits = (
        geometry.apply(picture),
        geometry.apply_mask(mask),
        geometry.apply_logits(logits, -4),
    )
    assert moved_mask.dtype == torch.uint8 and moved_mask.shape == mask.shape
    assert 0.2 < moved_mask.float().mean() < 0.45
    assert ((moved[:, 0] > 0.5) != (moved_mask > 0)).float().mean() < 0.01
    assert ((moved_logits[:, 0] > 0) != (moved_mask > 0)).float().mean() < 0.02
    torch.testing.assert_close(geometry.apply_mask(mask[:, None])[:, 0], moved_mask)


def test_flipped_says_which_pictures_need_the_mirrored_sentence():
    picture, *_ = _half_planes()
    geometry = Geometry.draw(BATCH, generator("flip"))
    right = geometry.apply(picture)[..., SIZE // 2 :].mean((1, 2, 3)) > geometry.apply(picture)[..., : SIZE // 2].mean(
        (1, 2, 3)
    )
    assert torch.equal(geometry.flipped, ~right)
    assert 0 < geometry.flipped.sum() < BATCH


def test_flips_and_turns_only_where_they_are_allowed():
    allowed = torch.arange(BATCH) % 2 == 0
    drawn = [
        Geometry.draw(BATCH, generator("allowed", i), flip=allowed, turns=~allowed, affine=False) for i in range(8)
    ]
    assert not any(g.flipped[~allowed].any() for g in drawn)
    assert any(g.flipped[allowed].any() for g in drawn)
    assert not any((g.upended | g.transposed)[allowed].any() for g in drawn)
    picture = torch.rand(BATCH, 1, SIZE, SIZE)
    assert all(torch.equal(g.apply(picture)[0] if not g.flipped[0] else picture[0], picture[0]) for g in drawn)


def test_turns_make_all_eight_orientations_exactly():
    picture = torch.rand(1, 1, SIZE, SIZE).repeat(200, 1, 1, 1)
    moved = Geometry.draw(200, generator("eight"), turns=True, affine=False).apply(picture)
    wanted = [p.rot90(k, (-2, -1)) for p in (picture[0], picture[0].flip(-1)) for k in range(4)]
    found = [sum(torch.equal(m, w) for m in moved) for w in wanted]
    assert sum(found) == 200 and min(found) > 5


def test_turns_of_oblong_pictures_are_refused():
    geometry = Geometry.draw(2, generator("oblong"), turns=True)
    with pytest.raises(ValueError, match="square"):
        geometry.apply(torch.rand(2, 1, 32, 48))


def test_rotation_keeps_shapes_in_oblong_pictures():
    """Every point moves by the same rotation in pixels: areas are kept up to the scale squared."""
    mask = torch.zeros(BATCH, 64, 160)
    mask[:, 22:42, 60:100] = 1
    geometry = Geometry.draw(BATCH, generator("oblong"), flip=False)
    area = geometry.apply_mask(mask).sum((1, 2)) / mask.sum((1, 2))
    torch.testing.assert_close(area, geometry.affine[:, 1] ** 2, atol=0.04, rtol=0)


def test_rows_without_text_stay_nan_and_the_others_get_the_fill():
    logits = torch.full((BATCH, 2, SIZE, SIZE), 5.0, dtype=torch.float16)
    logits[3] = torch.nan
    moved = Geometry.draw(BATCH, generator("nan")).apply_logits(logits, fill=-7.0)
    assert moved.dtype == torch.float32
    assert moved[3].isnan().all()
    rest = torch.cat([moved[:3], moved[4:]])
    assert rest.isfinite().all()
    assert rest.min() == -7 and abs(rest.max() - 5) < 1e-5
    unmoved = Geometry.draw(BATCH, generator("nan"), affine=False).apply_logits(logits, fill=-7.0)
    assert unmoved[3].isnan().all() and (unmoved[:3] == 5).all()


def test_same_generator_same_draw_whatever_is_switched_on():
    first, second = (Geometry.draw(BATCH, generator("same"), turns=turns) for turns in (False, True))
    assert torch.equal(first.flipped, second.flipped) and torch.equal(first.affine, second.affine)
    for view in (weak_view, strong_view):
        assert torch.equal(view(_smooth(), generator(1)), view(_smooth(), generator(1)))
        assert not torch.equal(view(_smooth(), generator(1)), view(_smooth(), generator(2)))


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_pictures_and_samples_differ(channels):
    picture = _smooth()[:1].repeat(BATCH, channels, 1, 1)
    before = picture.clone()
    for view in (weak_view, strong_view):
        seen = view(picture, generator("views"))
        assert seen.shape == picture.shape and seen.dtype == picture.dtype
        assert seen.isfinite().all() and seen.min() >= 0 and seen.max() <= 1
        assert all(not torch.equal(seen[0], other) for other in seen[1:])
    assert torch.equal(picture, before)


def test_the_weak_view_is_mild_and_the_strong_one_is_not():
    picture = torch.rand(64, 1, SIZE, SIZE, generator=generator("picture"))
    weak = (weak_view(picture, generator("mild")) - picture).abs().mean((1, 2, 3))
    strong = (strong_view(picture, generator("mild")) - picture).abs().mean((1, 2, 3))
    assert weak.max() < 0.1 < strong.max()
    assert strong.mean() > 2 * weak.mean()


def test_colour_changes_only_where_there_are_colours():
    grey = torch.full((BATCH, 3, SIZE, SIZE), 0.5)
    spread = strong_view(grey, generator("colour")).mean((2, 3)).std(1)
    assert (spread > 1e-2).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_the_same_but_for_grain(monkeypatch):
    picture = torch.rand(BATCH, 3, SIZE, SIZE)
    light, colour, gamma, blur, _, cutout = augment._CHANCES
    monkeypatch.setattr(augment, "_CHANCES", (light, colour, gamma, blur, 0.0, cutout))
    for view in (weak_view, strong_view):
        there = view(picture.cuda(), generator("device")).cpu()
        torch.testing.assert_close(there, view(picture, generator("device")), atol=2e-3, rtol=2e-3)
    here, there = (Geometry.draw(BATCH, generator("device")) for _ in range(2))
    torch.testing.assert_close(there.apply(picture.cuda()).cpu(), here.apply(picture), atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_grain_on_cuda_follows_from_the_generator_alone():
    picture = torch.rand(BATCH, 1, SIZE, SIZE).cuda()
    first, second, other = (strong_view(picture, generator("grain", i)) for i in (1, 1, 2))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)
    assert (first - other).abs().max() > 0.01


def test_what_comes_in_from_outside_is_black_or_the_edge():
    bright = torch.ones(8, 1, 16, 16)
    black, edge = (Geometry.draw(8, torch.Generator().manual_seed(1), outside=how) for how in ("black", "edge"))
    assert black.apply(bright).min() == 0 and torch.allclose(edge.apply(bright), bright)
    # into a mask and its logits background comes in, in both
    for geometry in (black, edge):
        assert geometry.apply_mask(bright).min() == 0
        assert geometry.apply_logits(bright, fill=-8.0).min() == -8
