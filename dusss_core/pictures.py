"""A picture and its mask, scaled to the size that the networks see."""

from __future__ import annotations

import numpy as np
from PIL import Image

from dusss_core.errors import UserError
from dusss_core.manifest import Record
from dusss_core.readers import read_mask


def load_mask(record: Record, shape: tuple[int, int], classes: int | None = None) -> np.ndarray:
    """The mask of a record whose picture is `shape` pixels: uint8 class indices, zeros if there is none.

    Args:
        classes: foreground classes as in ImageConfig; None: any class index is accepted.
    """
    if record.mask is None:
        return np.zeros(shape, np.uint8)
    mask = read_mask(record.mask)
    if mask.shape != shape:
        raise UserError(
            f"mask {record.mask} has {mask.shape[0]} x {mask.shape[1]} pixels (height x width), "
            f"its picture {record.image} {shape[0]} x {shape[1]}",
            "give the mask the size of its picture",
        )
    largest = classes or 255
    if mask.max(initial=0) > largest:
        raise UserError(
            f"mask {record.mask} holds class {mask.max()}, the study's largest is {largest}",
            "save one-class masks as 0 and 255, or ask the coordinator about image.classes",
        )
    return mask


def to_bytes(image: np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255, rounded."""
    return np.rint(image * 255).astype(np.uint8)


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Scale C x H x W to C x size x size, bilinear, antialiased; the aspect ratio is not kept."""
    if image.shape[1:] == (size, size):
        return image
    scaled = [Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR) for plane in image]
    return np.stack([np.asarray(plane) for plane in scaled]).clip(0, 1)


def resize_mask(mask: np.ndarray, size: int, classes: int) -> np.ndarray:
    """Scale class indices H x W to size x size: one class by area, cut at 1/2; several by the nearest
    pixel."""
    if mask.shape == (size, size):
        return mask
    if classes > 1:
        return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))
    area = Image.fromarray(mask.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    return (np.asarray(area) >= 0.5).astype(np.uint8)
