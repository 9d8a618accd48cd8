"""Reads the folder that benchmarks/gpu/pack.py makes: with torch, NumPy and Pillow alone."""

from __future__ import annotations

import io
import json
import lzma
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from dusss_core.errors import UserError

ABOUT, PICTURES, MASKS = "about.json", "pictures.safetensors", "masks.safetensors"
TEXT, ENCODER, WHEELS = "text.safetensors.xz", "encoder.safetensors", "wheels"
LARGEST = 60_000_000
"""Bytes of the whole folder, at most."""


class Label(NamedTuple):
    """One record, as the folder names it."""

    id: str
    site: str
    split: str
    sentence: int
    """-1: none."""
    rank: int
    """Place in its site's order of labels; -1: it is no training record with a mask."""


class Packed:
    """The grid's cells with one seed, in one place (setting `centralized`).

    Raises:
        UserError: the folder is not one that pack.py made.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError(f"{folder}: no pack for a GPU machine", "make it: make gpu-pack") from None
        self.size, self.seed, self._text = about["size"], about["seed"], about["text"]
        self.sentences = tuple(about["sentences"])
        self.records = [Label(*row) for row in about["records"]]

    def splits(self, labels: float, few: int = 0) -> dict[str, Any]:
        """train, val and test as `dusss_core.records.Split`, three channels each, in the grid's order and by its names.

        Args:
            labels: share of each site's training masks that may be trained on.
            few: training pictures, and a third as many of the others, at half the size; 0: all.
        """
        from dusss_core.files import read_tensors
        from dusss_core.records import Split

        files = {}
        for name in (PICTURES, MASKS):
            tensors, _ = read_tensors(self.folder / name)
            files[name] = tensors["bytes"].numpy().tobytes(), tensors["ends"].tolist()
        chosen = labelled(self.records, labels)
        found = {}
        with ThreadPoolExecutor() as pool:
            for split in ("train", "val", "test"):
                places = [i for i, record in enumerate(self.records) if record.split == split]
                if few:
                    places = places[:: max(1, len(places) // few)][: few if split == "train" else few // 3]
                picture, mask = (
                    np.stack(list(pool.map(partial(_decoded, *files[name], mode), places)))
                    for name, mode in ((PICTURES, "RGB"), (MASKS, "1"))
                )
                if few:
                    picture, mask = picture[:, ::2, ::2], mask[:, ::2, ::2]
                found[split] = Split(
                    images=np.ascontiguousarray(picture.transpose(0, 3, 1, 2)),
                    masks=mask.astype(np.uint8),
                    labelled=np.array([chosen[i] for i in places]),
                    masked=np.ones(len(places), bool),
                    sentence=np.array([self.records[i].sentence for i in places], np.int64),
                    sentences=self.sentences,
                    ids=tuple(f"{self.records[i].site}-{self.records[i].id}" for i in places),
                )
        return found

    def unpack(self, folder: Path) -> None:
        """Write the text features, and what stands for the encoder, into `folder`."""
        (folder / self._text["file"]).write_bytes(lzma.decompress((self.folder / TEXT).read_bytes()))

    def settle(self, config: Any, folder: Path) -> Any:
        """`config` for a machine without text encoder: `folder` is that of `unpack`."""
        from benchmarks.gpu.made_up import without_encoder

        return without_encoder(config, folder / "encoder", self._text["width"])

    def bank(self, config: Any, folder: Path, device: Any) -> Any:
        """The bank of all sentences, from the features in `folder`.

        Raises:
            UserError: the features are of other wordings than this checkout makes.
        """
        from dusss_core.text.bank import build_text_bank

        encoder = SimpleNamespace(digest=self._text["digest"], width=self._text["width"], tokenize=_other_wordings)
        return build_text_bank(self.sentences, config.vlm.text, folder, device, encoder=encoder)


def labelled(records: Sequence[Label], share: float) -> list[bool]:
    """Which records' masks may be trained on: as `dusss_core.manifest.labelled_by_fraction` chooses, site by site."""
    known = Counter(record.site for record in records if record.rank >= 0)
    # rounded first, since 0.07 * 100 is a little more than 7
    first = {site: math.ceil(round(share * n, 6)) for site, n in known.items()}
    return [0 <= record.rank < first.get(record.site, 0) for record in records]


def _decoded(blob: bytes, ends: Sequence[int], mode: str, place: int) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(blob[ends[place - 1] if place else 0 : ends[place]])) as picture:
        return np.asarray(picture.convert(mode))


def _other_wordings(texts: Sequence[str]) -> None:
    raise UserError(
        f"{len(texts)} wordings of the sentences are not in the pack", "make it anew from this checkout: make gpu-pack"
    )
