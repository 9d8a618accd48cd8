"""One split of one site's data, ready for training: what `sites` hands to the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dusss_core.intervals import groups_of


@dataclass(frozen=True)
class Split:
    """Pictures, masks and sentences of one split, in one order.

    `images` and `masks` are numpy arrays (possibly memory-mapped) when all pictures have the study's size, and
    lists of arrays when whole pictures of different sizes are kept for sliding-window evaluation.
    """

    images: np.ndarray | Sequence[np.ndarray]
    """N x C x H x W, uint8; 0 to 255 stands for [0, 1]."""
    masks: np.ndarray | Sequence[np.ndarray]
    """N x H x W, uint8 class indices; zeros where `masked` is False."""
    labelled: np.ndarray
    """N, bool: the mask may be trained on."""
    masked: np.ndarray
    """N, bool: a mask exists. Where it is not `labelled` it serves to report the quality of pseudo-labels only."""
    sentence: np.ndarray
    """N, int64: index into `sentences`, -1 for a record without text. Of several, the first: text-guided masks and
    figures are made with it."""
    sentences: tuple[str, ...]
    """The distinct sentences, sorted."""
    ids: tuple[str, ...]
    """N record ids, in the order of the arrays. They never leave the site."""
    more: np.ndarray | None = None
    """N x M, int64: further sentences of each record, -1 where it has fewer. None: no record has any."""
    patients: tuple[str, ...] | None = None
    """N names, empty where none is given. None: not known. They never leave the site."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_text(self) -> np.ndarray:
        """N, bool."""
        return self.sentence >= 0

    @property
    def groups(self) -> np.ndarray:
        """N numbers from 0: records of one patient have the same, and one whose patient is not known has its own."""
        return groups_of(self.patients or ("",) * len(self), self.ids)

    def select(self, keep: np.ndarray) -> Split:
        """The records at the integer positions `keep`, in that order; sentences keep their numbers."""
        keep = np.asarray(keep, dtype=np.int64)

        def pick(values):
            return values[keep] if isinstance(values, np.ndarray) else [values[i] for i in keep]

        return Split(
            images=pick(self.images),
            masks=pick(self.masks),
            labelled=self.labelled[keep],
            masked=self.masked[keep],
            sentence=self.sentence[keep],
            sentences=self.sentences,
            ids=tuple(self.ids[i] for i in keep),
            more=None if self.more is None else self.more[keep],
            patients=None if self.patients is None else tuple(self.patients[i] for i in keep),
        )

    @property
    def all_sentences(self) -> np.ndarray:
        """N x (1 + M), int64: the first sentence and the further ones, -1 where there is none."""
        first = self.sentence[:, None]
        return first if self.more is None else np.concatenate([first, self.more], axis=1)
