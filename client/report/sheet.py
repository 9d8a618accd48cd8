"""What the models of a study say of a site's pictures: masks, figures, and the pictures that are worth a look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dusss_core.config import TrainingConfig
from dusss_core.phases import Phase
from dusss_core.records import Split
from dusss_core.text.bank import build_text_bank

if TYPE_CHECKING:
    from torch import Tensor

    from sites.dataset import SiteData

TEXT_MASK, TEACHER, STUDENT, TOLD, OWN = (
    "text-guided mask",
    "teacher",
    "student",
    "student with the sentence",
    "this site's own student",
)
"""What is shown beside the picture and its true mask, in this order."""
_JUDGES = (STUDENT, TOLD, OWN, TEACHER, TEXT_MASK)
"""By whose Dice pictures are ranked: the first that there is."""


@dataclass(frozen=True)
class Network:
    """A whole student, or one that became none: weights and the settings that build it."""

    config: TrainingConfig
    tensors: dict[str, Tensor]
    hears: bool = False
    """Whether it can be given a sentence."""


@dataclass(frozen=True)
class Models:
    """What a site has of a study; None: it has none of that kind."""

    student: Network | None = None
    teacher: Network | None = None
    own: Network | None = None
    """The student that is the site's own (`personal`)."""
    vlm: Network | None = None
    """The vision-language model, with the site's own normalisation layers where it has such."""
    notes: tuple[str, ...] = ()
    """Of which rounds these are, for people."""

    @property
    def classes(self) -> int:
        """Foreground classes that they tell apart."""
        there = (self.student, self.teacher, self.own, self.vlm)
        return next((one.config.image.classes for one in there if one is not None), 1)


@dataclass(frozen=True)
class Row:
    """One picture at the study's size."""

    rank: str
    """worst, median or best; empty where masks are not known."""
    id: str
    sentence: str
    picture: np.ndarray
    """channels x H x W, uint8."""
    truth: np.ndarray | None
    """H x W class indices."""
    masks: dict[str, np.ndarray | None]
    """By column: H x W class indices; None where the model says nothing of this picture."""
    dice: dict[str, float]
    """By column, against the truth."""


@dataclass
class Sheet:
    """A site's part of the page."""

    site: str
    split: str
    """Whose pictures they are: test, val or train."""
    n: int
    """Pictures that were looked at, of `of`."""
    of: int
    classes: int = 1
    """Foreground classes."""
    notes: tuple[str, ...] = ()
    columns: list[str] = field(default_factory=list)
    judge: str = ""
    """The column that pictures are ranked by; empty: they are not ranked."""
    figures: dict[str, np.ndarray] = field(default_factory=dict)
    """By column the Dice of each picture; text-guided masks have it for pictures with a sentence, NaN elsewhere."""
    rows: list[Row] = field(default_factory=list)


def make_sheet(
    site: str,
    split: Split,
    name: str,
    models: Models,
    *,
    each: int = 2,
    most: int = 500,
    device: str = "cpu",
    text_cache: Path | None = None,
) -> Sheet:
    """Look at the pictures of a split with every model that the site has.

    Args:
        name: of the split.
        each: the worst, the median and the best pictures, so many of each; fewer where there are fewer pictures.
        most: pictures that are looked at, evenly spaced over the split.
        text_cache: folder for the features of the site's sentences.

    Returns:
        The sheet: ranked by the student's Dice if masks are known, else pictures evenly spaced over the split.
    """
    known = np.flatnonzero(split.masked)
    there = known if len(known) else np.arange(len(split))
    looked = split.select(_spaced(there, most))
    sheet = Sheet(site, name, len(looked), len(there), models.classes, models.notes)
    if not len(looked):
        return sheet
    masks = masks_of(models, looked, device, text_cache)
    sheet.columns = list(masks)
    dice: dict[str, np.ndarray] = {}
    if len(known):
        dice = {column: _dice(found, looked, models) for column, found in masks.items()}
        sheet.figures = dice
        sheet.judge = next((column for column in _JUDGES if column in dice), "")
    for rank, i in _chosen(dice.get(sheet.judge), len(looked), each):
        sentence = int(looked.sentence[i])
        sheet.rows.append(
            Row(
                rank,
                looked.ids[i],
                looked.sentences[sentence] if sentence >= 0 else "",
                np.asarray(looked.images[i]),
                np.asarray(looked.masks[i]) if len(known) else None,
                {column: found[i] for column, found in masks.items()},
                {column: float(figures[i]) for column, figures in dice.items() if not np.isnan(figures[i])},
            )
        )
    return sheet


def masks_of(models: Models, split: Split, device: str, cache: Path | None) -> dict[str, list[np.ndarray | None]]:
    """By column: what each model says of every picture."""
    found: dict[str, list[np.ndarray | None]] = {}
    if models.vlm is not None:
        found[TEXT_MASK] = _text_masks(models.vlm, split, device, cache)
    for column, network in ((TEACHER, models.teacher), (STUDENT, models.student), (OWN, models.own)):
        if network is not None:
            found[column] = _student_masks(network, split, device)
        if column == STUDENT and network is not None and network.hears:
            found[TOLD] = _told_masks(network, split, device, cache)
    return found


def _text_masks(vlm: Network, split: Split, device: str, cache: Path | None) -> list[np.ndarray | None]:
    from dusss_core.metrics import to_classes
    from dusss_core.training import text_guided_masks

    text = None
    if vlm.config.vlm.text.tuning == "frozen":
        text = build_text_bank(split.sentences, vlm.config.vlm.text, cache, device, augmented=False)
    logits = text_guided_masks(vlm.config, vlm.tensors, split, text, device)
    return [to_classes(z) if told else None for z, told in zip(logits, split.has_text, strict=True)]


def _student_masks(network: Network, split: Split, device: str) -> list[np.ndarray]:
    from dusss_core.inference import predict_logits
    from dusss_core.metrics import to_classes
    from dusss_core.runtime import runtime_of

    config = network.config
    runtime = runtime_of(config, Phase.SEGMENT, device)
    model = _built(network, device)
    logits = predict_logits(model, split.images, config.image, device, runtime.eval_batch, amp=runtime.amp)
    return [to_classes(z) for z in logits]


def _told_masks(network: Network, split: Split, device: str, cache: Path | None) -> list[np.ndarray | None]:
    from dusss_core.metrics import to_classes
    from dusss_core.training import told_logits

    text = build_text_bank(split.sentences, network.config.vlm.text, cache, device, augmented=False)
    logits = told_logits(network.config, _built(network, device), split, text, device)
    return [to_classes(z) if told else None for z, told in zip(logits, split.has_text, strict=True)]


def _built(network: Network, device: str):
    from dusss_core.build import build_student
    from dusss_core.models.weights import load_tensors

    model = build_student(network.config).to(device)
    load_tensors(model, network.tensors)
    return model


def _dice(masks: Sequence[np.ndarray | None], split: Split, models: Models) -> np.ndarray:
    """Of each picture; NaN where the model says nothing of it."""
    from dusss_core.metrics import per_image

    return np.array(
        [
            np.nan
            if mask is None
            else per_image(mask[None], np.asarray(truth)[None], models.classes, distances=False)["dice"][0]
            for mask, truth in zip(masks, split.masks, strict=True)
        ]
    )


def _chosen(dice: np.ndarray | None, n: int, each: int) -> list[tuple[str, int]]:
    """Rank and number of the pictures to show, none twice."""
    if dice is None or np.isnan(dice).all():
        return [("", int(i)) for i in _spaced(np.arange(n), 3 * each)]
    order = np.argsort(dice, kind="stable")[: int((~np.isnan(dice)).sum())]  # NaN come last
    middle = max(0, (len(order) - each) // 2)
    places = {
        "worst": range(min(each, len(order))),
        "median": range(middle, min(middle + each, len(order))),
        "best": range(max(0, len(order) - each), len(order)),
    }
    taken: set[int] = set()
    chosen = []
    for rank, numbers in places.items():
        for number in (number for number in numbers if number not in taken):
            taken.add(number)
            chosen.append((rank, int(order[number])))
    return chosen


def _spaced(numbers: np.ndarray, most: int) -> np.ndarray:
    if len(numbers) <= most:
        return numbers
    return numbers[np.linspace(0, len(numbers) - 1, most).astype(int)]


def split_to_show(data: SiteData, names: Sequence[str]) -> tuple[str, Split]:
    """The first of the splits `names` that has known masks, else the first that has pictures, else an empty one."""
    splits = {name: data.split(name) for name in names}
    masked = [name for name, split in splits.items() if split.masked.any()]
    there = [name for name, split in splits.items() if len(split)]
    chosen = (masked or there or list(names))[0]
    return chosen, splits[chosen]
