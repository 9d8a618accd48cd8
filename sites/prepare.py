"""From one record to the uint8 arrays that are packed: read, check, then scale or cut into tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dusss_core.config import ImageConfig
from dusss_core.manifest import Record
from dusss_core.pictures import load_mask, resize_image, resize_mask, to_bytes
from dusss_core.readers import read_image


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
