import numpy as np
import pytest
import torch
from torch import nn

from dusss_core.config import ImageConfig
from dusss_core.inference import predict_logits, to_input

IMAGE = ImageConfig(channels=1, size=32, mean=0.4, std=0.2)


def pictures(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)


class PixelByPixel(nn.Module):
    """A network whose output at a pixel depends on that pixel alone, so windows must not change it."""

    def __init__(self, classes: int = 1, channels: int = 1):
        super().__init__()
        self.layer = nn.Conv2d(channels, classes, 1)
        nn.init.constant_(self.layer.weight, 0.5)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x):
        assert not torch.is_grad_enabled()
        self.seen.append(tuple(x.shape))
        return self.layer(x)


class MeanOfWindow(nn.Module):
    def forward(self, x):
        return x.mean(dim=(1, 2, 3), keepdim=True).repeat(1, 1, *x.shape[2:])


def expected(model: PixelByPixel, picture: np.ndarray) -> np.ndarray:
    x = (picture.astype(np.float64) / 255 - IMAGE.mean) / IMAGE.std
    weight = model.layer.weight.detach().numpy()[:, :, 0, 0]
    return np.einsum("fc,chw->fhw", weight, x) + model.layer.bias.detach().numpy()[:, None, None]


def test_input_is_normalised_with_the_constants():
    x = to_input(torch.tensor([0, 51, 255], dtype=torch.uint8), IMAGE)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor([-2.0, -1.0, 3.0]))


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_pictures_of_the_studys_size_are_predicted_batch_by_batch(batch):
    model, images = PixelByPixel(classes=3), pictures(7, 1, 32, 32)
    logits = predict_logits(model, images, IMAGE, "cpu", batch)
    assert logits.shape == (7, 3, 32, 32) and logits.dtype == np.float16
    assert max(shape[0] for shape in model.seen) == min(batch, 7)
    for got, picture in zip(logits, images, strict=True):
        np.testing.assert_allclose(got, expected(model, picture), atol=5e-3)


def test_pictures_of_other_sizes_are_seen_through_windows_and_come_back_in_their_size():
    model = PixelByPixel()
    images = [pictures(1, *size) for size in ((32, 32), (50, 71), (10, 90), (20, 12))]
    logits = predict_logits(model, images, IMAGE, "cpu", 2)
    assert isinstance(logits, list)
    assert all(shape[2:] == (32, 32) and shape[0] <= 2 for shape in model.seen)
    for got, picture in zip(logits, images, strict=True):
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, expected(model, picture), atol=5e-3)


def test_an_array_of_larger_pictures_is_seen_through_windows_too():
    model, images = PixelByPixel(), pictures(3, 1, 40, 48)
    logits = predict_logits(model, images, IMAGE, "cpu", 2)
    assert logits.shape == (3, 1, 40, 48)
    np.testing.assert_allclose(logits[2], expected(model, images[2]), atol=5e-3)


def test_what_a_small_picture_lacks_is_black():
    picture = np.full((1, 16, 32), 255, dtype=np.uint8)
    (logits,) = predict_logits(MeanOfWindow(), [picture], IMAGE, "cpu", 4)
    white_and_black = ((1 - 0.4) / 0.2 + (0 - 0.4) / 0.2) / 2
    np.testing.assert_allclose(logits, white_and_black, atol=1e-2)


def test_the_model_evaluates_and_is_left_as_it_was():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(1))
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = (predict_logits(model, pictures(4, 1, 32, 32), IMAGE, "cpu", 2) for _ in range(2))
    assert np.array_equal(first, again)
    assert [module.training for module in (model, *model)] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_mode_is_restored_when_the_model_fails():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of memory")

    model = Fails().train()
    with pytest.raises(RuntimeError, match="out of memory"):
        predict_logits(model, pictures(1, 1, 32, 32), IMAGE, "cpu", 1)
    assert model.training


def test_no_pictures_give_no_logits():
    assert predict_logits(PixelByPixel(), pictures(0, 1, 32, 32), IMAGE, "cpu", 2).shape == (0, 1, 32, 32)
    assert predict_logits(PixelByPixel(), [], IMAGE, "cpu", 2) == []


def test_half_precision_stays_close_and_read_only_arrays_are_taken():
    model, images = PixelByPixel(), pictures(2, 1, 32, 32)
    images.flags.writeable = False
    exact = predict_logits(model, images, IMAGE, "cpu", 2)
    rough = predict_logits(model, images, IMAGE, "cpu", 2, amp=True)
    np.testing.assert_allclose(rough, exact, atol=0.05)
    assert not np.array_equal(rough, exact)


def test_logits_beyond_float16_are_clamped():
    model = PixelByPixel()
    nn.init.constant_(model.layer.weight, 1e6)
    logits = predict_logits(model, pictures(1, 1, 32, 32), IMAGE, "cpu", 1)
    assert np.isfinite(logits).all() and abs(logits).max() > 6e4
