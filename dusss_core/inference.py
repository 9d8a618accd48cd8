"""From uint8 pictures to logits, with a whole picture of any size seen through a sliding window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from dusss_core.config import ImageConfig

OVERLAP = 0.25
"""Of neighbouring windows, as a share of the window."""


def to_input(images: Tensor, image: ImageConfig) -> Tensor:
    """What the networks see: (x / 255 - mean) / std of uint8 pictures, any shape, float32."""
    return (images.float() / 255 - image.mean) / image.std


def predict_logits(
    model: nn.Module,
    images: np.ndarray | Sequence[np.ndarray],
    image: ImageConfig,
    device: torch.device | str,
    batch: int,
    amp: bool = False,
) -> np.ndarray | list[np.ndarray]:
    """Logits of all pictures from a model in evaluation mode, which is put back as it was.

    Args:
        model: B x channels x size x size -> B x C x size x size logits; on `device` already.
        images: uint8, N x channels x H x W, or a sequence of channels x H x W arrays of any sizes.
        image: its `size` is the window. Pictures of another size are predicted by overlapping windows,
            weighted by a Gaussian around their centres; what a small picture lacks is filled with black.
        batch: pictures (or windows) at a time.
        amp: bfloat16 autocast.

    Returns:
        float16, N x C x H x W, or a list of C x H x W arrays, as the pictures came. Values beyond float16 are
        clamped.
    """
    device = torch.device(device)
    with evaluating(model):

        def logits_of(block: np.ndarray) -> np.ndarray:
            inputs = to_input(torch.from_numpy(np.array(block)).to(device), image)
            logits = see(model, inputs, image, batch, amp)
            largest = torch.finfo(torch.float16).max
            return logits.clamp(-largest, largest).half().cpu().numpy()

        if not isinstance(images, np.ndarray):
            return [logits_of(picture[None])[0] for picture in images]
        if not len(images):
            return np.zeros((0, image.outputs, *images.shape[2:]), dtype=np.float16)
        return np.concatenate([logits_of(images[i : i + batch]) for i in range(0, len(images), batch)])


def see(model: nn.Module, inputs: Tensor, image: ImageConfig, batch: int, amp: bool = False) -> Tensor:
    """Logits of normalised pictures B x channels x H x W from a model in evaluation mode: B x C x H x W, float32.

    Pictures of another size than `image.size` are seen through a sliding window, `batch` windows at a time.
    """
    predict = model if inputs.shape[2:] == (image.size, image.size) else _window(model, image, batch)
    with torch.inference_mode(), torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=amp):
        return predict(inputs).float()


def _window(model: nn.Module, image: ImageConfig, batch: int) -> Callable[[Tensor], Tensor]:
    from monai.inferers import SlidingWindowInferer

    black = (0 - image.mean) / image.std
    inferer = SlidingWindowInferer(
        roi_size=(image.size, image.size),
        sw_batch_size=batch,
        overlap=OVERLAP,
        mode="gaussian",
        padding_mode="constant",
        cval=black,
    )
    # the windows are weighed in place, which bfloat16 would round
    return lambda inputs: inferer(inputs, lambda windows: model(windows).float())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, restored module by module: a frozen part of a training model stays as it is."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
