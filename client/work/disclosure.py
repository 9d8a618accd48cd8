"""Which figures of an answer may leave: those that are means over pictures enough. The others stay in the site's log.

A mean over one picture is that picture's own figure, and fifty models in a row tell more of it than its outline. So a
figure leaves where at least `limits.min_records` pictures have a part in it. Of pictures of which one alone has a
finding the mean is that one's figure too, for a model that finds nothing in the others: pictures without a finding
count where no picture has one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from client.door.request import Judged
from client.state.store import write_log
from client.work.workbench import Workbench
from dusss_core.objectives import objective_of
from dusss_core.phases import Phase

if TYPE_CHECKING:
    from dusss_core.records import Split

_ALWAYS = {"num-examples", "state.age", "seconds", "personal.round"}
"""Counts of pictures and of rounds, and time: no picture has a figure in them."""
_OF_CLASS = re.compile(r"(?:text_)?(?:dice|iou|dice_pooled)_(\d+)(?:_(?:low|high))?")
"""Figures of one class: pictures without it have no part in them."""
_TILE = re.compile(r"@\d+,\d+$")
"""What the id of a training tile has behind that of its picture."""
_COUNT = re.compile(r"(?:text_)?(?:n|n_positive(?:_\d+)?|dice_from_\d+)")
"""Numbers of pictures."""


def open_figures(request: Judged, bench: Workbench, figures: Mapping[str, float]) -> dict[str, float]:
    """Those of `figures` that may leave; the others are written to the site's own log.

    Args:
        figures: as they are sent, under "val.", "train.", "test.", "text_mask.", "pseudo." and "personal.".
    """
    least = request.site.limits.min_records
    pictures = _Pictures(request, bench)
    kept = {name: value for name, value in figures.items() if name not in _ALWAYS and pictures.of(name) < least}
    if kept:
        told = json.dumps({name: round(float(value), 6) for name, value in kept.items()})
        what = f"{request.kind} {request.phase} round {request.round}"
        write_log(request.site.state_dir, f"{what}: figures of too few pictures, which stay here: {told}")
    return {name: value for name, value in figures.items() if name not in kept}


class _Pictures:
    """How many pictures, at least, a figure is made of."""

    def __init__(self, request: Judged, bench: Workbench):
        self._request, self._bench = request, bench
        self._findings: dict[str, np.ndarray] = {}

    def of(self, name: str) -> int:
        group, _, rest = name.partition(".")
        if group == "train" and (rest == "text_share" or rest.startswith("judged_")):
            return self._scored("val", "text_dice")  # of `dusss_core.training.judging`
        if group == "train":
            return self._training()
        if group == "pseudo":
            train = self._bench.split("train")
            return _pictures(train, self._with_finding("train", train.masked & ~train.labelled & train.has_text))
        if name == "personal.val_dice" or group == "val":
            return self._scored("val", rest)
        return self._scored("test", rest, told=group == "text_mask")

    def _training(self) -> int:
        """A loss is a sum of means over either kind of the pictures that are learned from: the fewer of the two."""
        train, phase, config = self._bench.split("train"), self._request.phase, self._request.training
        used = phase.usable(train)
        others = ~train.labelled & used
        if phase == Phase.SEGMENT:
            learns_from = objective_of(config).learns_from(config)
            others = others & {"all": True, "with_text": train.has_text, "none": False}[learns_from]
        counts = (_pictures(train, train.labelled & used), _pictures(train, others))
        return min((count for count in counts if count), default=0)

    def _scored(self, name: str, figure: str, told: bool = False) -> int:
        split = self._bench.split(name)
        chosen = split.masked
        if told or figure.startswith("text_") or self._request.phase == Phase.PRETRAIN:
            chosen = chosen & split.has_text if figure != "loss" else split.has_text
        if (of_class := _OF_CLASS.fullmatch(figure)) is not None:
            number = int(of_class[1])
            holds = [bool((np.asarray(mask) == number).any()) for mask in split.masks]
            chosen = chosen & np.array(holds, dtype=bool)
        elif not _COUNT.fullmatch(figure) and not (figure == "loss" and self._request.phase == Phase.PRETRAIN):
            chosen = self._with_finding(name, chosen)
        return _pictures(split, chosen)

    def _with_finding(self, name: str, chosen: np.ndarray) -> np.ndarray:
        """Those of the chosen records of a split whose mask is not empty; all of them where each is."""
        if name not in self._findings:
            masks = self._bench.split(name).masks
            self._findings[name] = np.array([bool(np.any(mask)) for mask in masks], dtype=bool)
        found = chosen & self._findings[name]
        return found if found.any() else chosen


def _pictures(split: Split, chosen: np.ndarray) -> int:
    """Distinct pictures among the chosen records, which may be tiles of them (`id@y,x`)."""
    return len({_TILE.sub("", split.ids[i]) for i in np.flatnonzero(chosen)})
