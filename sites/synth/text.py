"""The sentences of the synthetic hospitals: each hospital has its own templates and vocabulary.

Left and right are the picture's, and no clause but the finding's names a side or a zone, so that the sentence
says neither more nor less than where the finding lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from dusss_core.seeds import derive_seed

Cell = tuple[str, str]


def sentence(wording: str, findings: Sequence[Cell], radius: float, seed: tuple[object, ...]) -> str:
    """The sentence of one picture.

    Args:
        wording: terse, zonal, report or plain.
        findings: (side, zone) of each finding, sides left and right, zones upper, middle and lower.
        radius: mean radius of the findings in pixels of a 64 x 64 picture, for the size words of a wording.
        seed: names that seed the choice of words.
    """
    choice = Random(derive_seed("synth text", *seed))
    return {"terse": _terse, "zonal": _zonal, "report": _report, "plain": _plain}[wording](findings, radius, choice)


def _terse(findings: Sequence[Cell], radius: float, choice: Random) -> str:
    """unilateral pulmonary infection, one infected area, upper left lung."""
    if not findings:
        return "no pulmonary infection, no infected area."
    extent = "bilateral" if len({side for side, _ in findings}) == 2 else "unilateral"
    number = {1: "one infected area", 2: "two infected areas"}[len(findings)]
    places = " and ".join(f"{zone} {side} lung" for side, zone in findings)
    return f"{extent} pulmonary infection, {number}, {places}."


def _zonal(findings: Sequence[Cell], radius: float, choice: Random) -> str:
    """left lung upper zone shows consolidation."""
    noun = choice.choice(("consolidation", "an opacity", "infiltrate"))
    if not findings:
        return f"neither lung shows {noun}."
    if len(findings) == 1:
        side, zone = findings[0]
        return f"{side} lung {zone} zone shows {noun}."
    (side_a, zone_a), (side_b, zone_b) = findings
    if side_a == side_b:
        return f"{side_a} lung {zone_a} and {zone_b} zones show {noun}."
    return f"{side_a} lung {zone_a} zone and {side_b} lung {zone_b} zone show {noun}."


def _report(findings: Sequence[Cell], radius: float, choice: Random) -> str:
    """Heart size is normal. There is a small patchy opacity in the upper zone of the left lung. No ..."""
    before = choice.choice(
        ("Heart size is normal.", "The heart is mildly enlarged.", "Lines and tubes in good position.")
    )
    after = choice.choice(("No pleural effusion.", "No pneumothorax.", "Bones are unremarkable."))
    if not findings:
        return f"{before} The lungs are clear. {after}"
    size = "small" if radius < 5.3 else "large" if radius > 6.2 else "moderate"
    places = " and in the ".join(f"{zone} zone of the {side} lung" for side, zone in findings)
    noun = f"a {size} patchy opacity" if len(findings) == 1 else f"{size} patchy opacities"
    verb = "is" if len(findings) == 1 else "are"
    return f"{before} There {verb} {noun} in the {places}. {after}"


def _plain(findings: Sequence[Cell], radius: float, choice: Random) -> str:
    """infected area in the upper left lung"""
    if not findings:
        return "both lungs are free of infection"
    opening = choice.choice(("infected area", "pneumonia", "signs of infection"))
    return f"{opening} in the {' and in the '.join(f'{zone} {side} lung' for side, zone in findings)}"
