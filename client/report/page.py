"""The page of sheets: one file that asks for nothing, readable by its owner alone, and never sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.report.sheet import OWN, STUDENT, TEACHER, TEXT_MASK, TOLD, Row, Sheet
from dusss_core.predicting.outputs import COLOURS
from feddusss.page import data_url, outline, template, write_private

SMALL, LARGE = 192, 384
"""A picture's longer side on the page, in pixels, where its own is shorter or longer."""
TRUTH = (0, 190, 255)
"""The true outline of a single class: a blue that is told from the orange of what is predicted by lightness too."""
PREDICTED = (255, 140, 0)
_COVER = 0.45
"""Of the picture by what is predicted."""
_TITLES = {
    STUDENT: "Student",
    TOLD: "Student with the sentence",
    OWN: "This site's own student",
    TEACHER: "Teacher",
    TEXT_MASK: "Text-guided mask",
}
_RANKS = {"worst": "Worst", "median": "In the middle", "best": "Best", "": "Pictures"}
_BINS = 20


def write_page(
    path: Path, title: str, kicker: str, private: str, about: Sequence[str], sheets: Sequence[Sheet]
) -> None:
    """Write the page of `sheets`.

    Args:
        title, kicker: over the page; the command that makes it.
        private: who may see the page.
        about: what it is of, a sentence each.

    Raises:
        UserError: disk full or no permission.
    """
    shown = {
        "title": title,
        "kicker": kicker,
        "private": private,
        "about": list(about),
        "sites": [_site(sheet) for sheet in sheets],
    }
    write_private(path, template(Path(__file__).parent / "templates", "look.html.j2").render(shown))


def _site(sheet: Sheet) -> dict[str, Any]:
    of = f"{sheet.n} of {sheet.of}" if sheet.n < sheet.of else f"{sheet.n}"
    return {
        "site": sheet.site,
        "split": sheet.split,
        "of": of,
        "notes": list(sheet.notes),
        "columns": [_TITLES[column] for column in sheet.columns],
        "judge": _TITLES.get(sheet.judge, ""),
        "known": bool(sheet.figures),
        "figures": [
            {
                "name": _TITLES[column],
                "mean": _number(dice[~np.isnan(dice)].mean()) if (~np.isnan(dice)).any() else "none",
                "median": _number(np.median(dice[~np.isnan(dice)])) if (~np.isnan(dice)).any() else "none",
                "n": int((~np.isnan(dice)).sum()),
            }
            for column, dice in sheet.figures.items()
        ],
        "spread": _spread(sheet.figures.get(sheet.judge)),
        "groups": [
            {"title": _RANKS[rank], "rows": [_row(row, sheet) for row in sheet.rows if row.rank == rank]}
            for rank in dict.fromkeys(row.rank for row in sheet.rows)
        ],
    }


def _row(row: Row, sheet: Sheet) -> dict[str, Any]:
    large = _Large(row.picture, sheet.classes)
    tiles = [{"title": "Picture", "more": "", "image": data_url(large.picture)}]
    if row.truth is not None:
        tiles.append({"title": "Truth", "more": _area(row.truth), "image": data_url(large.with_truth(row.truth))})
    for column in sheet.columns:
        mask = row.masks[column]
        if mask is None:
            tiles.append({"title": _TITLES[column], "more": "no sentence", "image": ""})
            continue
        dice = f"Dice {_number(row.dice[column])}" if column in row.dice else _area(mask)
        image = data_url(large.with_mask(mask, row.truth))
        tiles.append({"title": _TITLES[column], "more": dice, "image": image})
    return {"id": row.id, "sentence": row.sentence, "tiles": tiles, "width": large.picture.shape[1]}


class _Large:
    """One picture as large as it is shown, and masks drawn over it.

    Args:
        picture: channels x H x W, uint8.
        classes: foreground classes.
    """

    def __init__(self, picture: np.ndarray, classes: int):
        from PIL import Image

        self._single = classes == 1

        pixels = np.repeat(picture, 3, axis=0) if len(picture) == 1 else picture
        pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        side = max(pixels.shape[:2])
        scale = min(max(side, SMALL), LARGE) / side
        self._size = tuple(max(1, round(length * scale)) for length in (pixels.shape[1], pixels.shape[0]))
        self.picture = np.array(Image.fromarray(pixels).resize(self._size, Image.Resampling.BILINEAR))

    def with_truth(self, truth: np.ndarray) -> np.ndarray:
        """The picture with the outline of the true mask."""
        return self._outlined(self.picture.copy(), truth, TRUTH)

    def with_mask(self, mask: np.ndarray, truth: np.ndarray | None) -> np.ndarray:
        """The picture with what is predicted as a tint, and with the true outline."""
        shown = self.picture.astype(np.float32)
        scaled = self._scaled(mask)
        for index, colour in self._classes(mask, PREDICTED):
            shown[scaled == index] = (1 - _COVER) * shown[scaled == index] + _COVER * np.array(colour)
        shown = np.rint(shown).astype(np.uint8)
        return shown if truth is None else self._outlined(shown, truth, TRUTH)

    def _outlined(self, shown: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
        scaled = self._scaled(mask)
        for index, own in self._classes(mask, colour):
            shown[outline(scaled == index)] = own
        return shown

    def _classes(self, mask: np.ndarray, single: tuple[int, int, int]):
        """Each class that is there with its colour: of a single class `single`."""
        there = [int(index) for index in np.unique(mask[mask > 0])]
        return [(index, single if self._single else COLOURS[(index - 1) % len(COLOURS)]) for index in there]

    def _scaled(self, mask: np.ndarray) -> np.ndarray:
        from PIL import Image

        return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(self._size, Image.Resampling.NEAREST))


def _spread(dice: np.ndarray | None) -> list[dict[str, Any]]:
    """How many pictures have which Dice: bars of equal width from 0 to 1, heights in percent of the highest."""
    if dice is None or np.isnan(dice).all():
        return []
    counts, edges = np.histogram(dice[~np.isnan(dice)], bins=_BINS, range=(0, 1))
    return [
        {"height": round(100 * int(n) / int(counts.max()), 1), "n": int(n), "low": f"{low:.2f}", "high": f"{high:.2f}"}
        for n, low, high in zip(counts, edges[:-1], edges[1:], strict=True)
    ]


def _area(mask: np.ndarray) -> str:
    return f"{np.count_nonzero(mask) / mask.size:.1%} of the picture"


def _number(value: float) -> str:
    return f"{value:.3f}"
