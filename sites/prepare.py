"""From one record to the uint8 arrays that are packed: read, check, then scale or cut into tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from dusss_core.config import ImageConfig
from dusss_core.errors import UserError
from sites.manifest import Record
from sites.readers import read_image, read_mask


@dataclass(frozen=True)
class Prepared:
    """The arrays of one record; n is 1 unless it was cut into tiles."""

    images: np.ndarray
    """n x C x H x W, uint8."""
    masks: np.ndarray
    """n x H x W, uint8 class indices; zeros without a mask."""
    corners: list[tuple[int, int]]
    """Row and column of each tile's upper left pixel; empty unless it was cut into tiles."""


def prepare(record: Record, config: ImageConfig) -> Prepared:
    """Read `record` and bring it into the form that the study asks for.

    mode resize: scaled to size x size. mode tile: train pictures are cut into tiles, others kept whole.

    Raises:
        UserError: unreadable files, a mask of another size than its picture, a class that the study does not
        know.
    """
    image = read_image(record.image, config.channels)
    mask = load_mask(record, image.shape[1:], config.classes)
    if config.mode == "resize":
        image, mask = resize_image(image, config.size), resize_mask(mask, config.size, config.classes)
    elif record.split == "train":
        return _cut(to_bytes(image), mask, config.size, config.tile_overlap)
    return Prepared(to_bytes(image)[None], mask[None], [])


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


def tile_corners(height: int, width: int, size: int, overlap: float) -> list[tuple[int, int]]:
    """Upper left pixels (row, column) of tiles that cover every pixel and, where the picture is large
    enough, lie inside it: the last tile of a row or column is shifted inwards."""

    def starts(length: int) -> list[int]:
        stride = max(1, round(size * (1 - overlap)))
        last = max(0, length - size)
        return [*range(0, last, stride), last]

    return [(y, x) for y in starts(height) for x in starts(width)]


def _cut(image: np.ndarray, mask: np.ndarray, size: int, overlap: float) -> Prepared:
    """Tiles of size x size; a picture that is smaller is first mirrored at its lower and right border."""
    corners = tile_corners(*mask.shape, size, overlap)
    border = [(0, max(0, size - length)) for length in mask.shape]
    image = np.pad(image, [(0, 0), *border], mode="symmetric")
    mask = np.pad(mask, border, mode="symmetric")
    images = np.stack([image[:, y : y + size, x : x + size] for y, x in corners])
    return Prepared(images, np.stack([mask[y : y + size, x : x + size] for y, x in corners]), corners)
