"""One hospital's data at the study's picture settings: from the manifest to the arrays that are trained
on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dusss_core.config import ImageConfig
from dusss_core.errors import UserError
from dusss_core.manifest import (
    MOST_LINES,
    SPLITS,
    Problem,
    Record,
    labelled_by_fraction,
    raise_problems,
    read_manifest,
)
from dusss_core.readers import parse_reference
from dusss_core.records import Split
from sites.config import LimitsConfig, SiteConfig
from sites.packing import Pack, PackBuilder, Progress, console_progress, digest_of, in_order, load_or_build
from sites.prepare import Prepared, prepare


class SiteData:
    """The pictures, masks and sentences of one site.

    The manifest is read at once; pictures are prepared at the first call of `split`, packed as uint8 arrays
    under `state_dir`/cache and memory-mapped from then on. The pack does not depend on sentences or on which
    masks may be trained on, so changing those does not prepare the pictures anew.

    Args:
        site: the site's config, with absolute paths.
        image: the study's picture settings.
        progress: called with pictures done and pictures in all; a bar on stderr if None.

    Raises:
        UserError: mistakes in the manifest.
    """

    def __init__(self, site: SiteConfig, image: ImageConfig, progress: Progress | None = None):
        self.site = site
        self.image = image
        self.records = [
            as_allowed(record, site.limits)
            for record in read_manifest(site.data.manifest)
            if record.split in site.limits.splits
        ]
        self.sentences = tuple(sorted({text for record in self.records for text in record.sentences}))
        """The distinct sentences of all splits, sorted: an index means the same in every split."""
        self._number = {sentence: i for i, sentence in enumerate(self.sentences)}
        self._chosen = labelled_by_fraction(self.records, site.data.label_fraction)
        self._progress = progress
        self._pack: Pack | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Pictures (not tiles): n_labelled, n_unlabelled, n_text and n_labelled_text (both) of the train split; n_val
        and n_test count those with a mask, since no other can be evaluated. No picture is read for it."""
        train = self._of("train")
        return {
            "n_labelled": sum(record.id in self._chosen for record in train),
            "n_unlabelled": sum(record.id not in self._chosen for record in train),
            "n_val": sum(record.mask is not None for record in self._of("val")),
            "n_test": sum(record.mask is not None for record in self._of("test")),
            "n_text": sum(bool(record.text) for record in train),
            "n_labelled_text": sum(record.id in self._chosen and bool(record.text) for record in train),
        }

    def split(self, name: str) -> Split:
        """The split `name` (train, val or test); of length 0 where the manifest has no such records.

        With `image.mode: tile` the train split holds tiles (ids `id@y,x`), each with its picture's sentence,
        and the others are lists of whole pictures.

        Raises:
            UserError: unreadable pictures, masks of another size or with unknown classes, a full disk.
        """
        if name not in SPLITS:
            raise ValueError(f"no split '{name}'")
        pack = self._load()
        records, index = self._of(name), pack.index[name]
        ids = [record.id for record in records]
        if "shapes" in index:
            images, masks = _whole_pictures(pack, index, self.image.channels)
        else:
            rows = slice(index["start"], index["start"] + index["n"])
            images, masks = pack.arrays["images"][rows], pack.arrays["masks"][rows]
        if "tiles" in index:
            ids = [f"{records[i].id}@{y},{x}" for i, y, x in index["tiles"]]
            records = [records[i] for i, _, _ in index["tiles"]]
        return Split(
            images=images,
            masks=masks,
            labelled=np.array([self._is_labelled(record) for record in records], dtype=bool),
            masked=np.array([record.mask is not None for record in records], dtype=bool),
            sentence=np.array([self._number.get(record.text, -1) for record in records], dtype=np.int64),
            sentences=self.sentences,
            ids=tuple(ids),
            more=self._further(records),
            patients=tuple(record.patient or "" for record in records),
        )

    def _further(self, records: Sequence[Record]) -> np.ndarray | None:
        """N x M: numbers of the sentences beyond the first, -1 where there are fewer."""
        longest = max((len(record.more_texts) for record in records), default=0)
        if not longest:
            return None
        more = np.full((len(records), longest), -1, dtype=np.int64)
        for row, record in zip(more, records, strict=True):
            row[: len(record.more_texts)] = [self._number[text] for text in record.more_texts]
        return more

    def _of(self, name: str) -> list[Record]:
        return [record for record in self.records if record.split == name]

    def _is_labelled(self, record: Record) -> bool:
        return record.id in self._chosen if record.split == "train" else record.labelled

    def _load(self) -> Pack:
        if self._pack is None:
            cache = self.site.state_dir / "cache" if self.site.data.cache else None
            self._pack = load_or_build(cache, self._digest(), self._build)
        return self._pack

    def _digest(self) -> str:
        """Names all that the pack depends on: files with their sizes and times, splits, picture settings."""
        folder = self.site.data.manifest.parent
        settings = self.image.model_dump(include={"channels", "size", "mode", "classes"})
        if self.image.mode == "tile":
            settings["tile_overlap"] = self.image.tile_overlap
        files = [
            (r.id, r.split, _stamp(r.image, folder), _stamp(r.mask, folder) if r.mask else None) for r in self.records
        ]
        return digest_of(settings, files)

    def _build(self, builder: PackBuilder) -> None:
        """Fill a pack with every picture: train, val, test, each in the manifest's order."""
        size, channels, tiled = self.image.size, self.image.channels, self.image.mode == "tile"
        images = builder.add_array("images", (channels, size, size))
        masks = builder.add_array("masks", (size, size))
        if tiled:
            flat_images, flat_masks = (builder.add_array(f"whole_{name}", ()) for name in ("images", "masks"))
        prepared = self._prepared()
        for name in SPLITS:
            entry = builder.index[name] = {"start": images.length}
            whole = tiled and name != "train"
            shapes, tiles = [], []
            for i in range(len(self._of(name))):
                item = next(prepared)
                if whole:
                    entry.setdefault("offset", flat_masks.length)
                    shapes.append(item.masks.shape[1:])
                    flat_images.append(item.images.reshape(-1))
                    flat_masks.append(item.masks.reshape(-1))
                else:
                    images.append(item.images)
                    masks.append(item.masks)
                    tiles += [(i, y, x) for y, x in item.corners]
            entry["n"] = images.length - entry["start"]
            if whole:
                entry["shapes"] = shapes
            elif tiled:
                entry["tiles"] = tiles
        next(prepared, None)  # raises the mistakes of the last records

    def _prepared(self) -> Iterator[Prepared]:
        """Every record in the pack's order. Mistakes are collected, so that one run names many of them."""
        ordered = [record for name in SPLITS for record in self._of(name)]
        problems: list[Problem] = []

        def work(record: Record) -> Prepared | Problem:
            try:
                return prepare(record, self.image)
            except UserError as error:
                return Problem(record.row, error.problem, error.remedy)

        with console_progress(f"preparing the pictures of {self.site.site}", self._progress) as progress:
            for done, item in enumerate(in_order(work, ordered), start=1):
                progress(done, len(ordered))
                if isinstance(item, Problem):
                    problems.append(item)
                    if len(problems) == MOST_LINES:
                        break
                elif not problems:
                    yield item
        raise_problems(self.site.data.manifest, problems)


def as_allowed(record: Record, limits: LimitsConfig) -> Record:
    """The record without what the site lets no study use."""
    if not limits.text:
        record = replace(record, text="", more_texts=())
    return record if limits.labels else replace(record, mask=None, labelled=False)


def _stamp(path: Path, folder: Path) -> list:
    """The path from the manifest's folder (so that a folder that moved keeps its pack), size and time of
    change."""
    status = parse_reference(path).file.stat()
    name = path.relative_to(folder) if path.is_relative_to(folder) else path
    return [str(name), status.st_size, status.st_mtime_ns]


def _whole_pictures(pack: Pack, index: dict, channels: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Views of pictures of different sizes, which are packed one behind the other."""
    images, masks, first = [], [], index.get("offset", 0)
    for height, width in index["shapes"]:
        last = first + height * width
        flat = pack.arrays["whole_images"][first * channels : last * channels]
        images.append(flat.reshape(channels, height, width))
        masks.append(pack.arrays["whole_masks"][first:last].reshape(height, width))
        first = last
    return images, masks
