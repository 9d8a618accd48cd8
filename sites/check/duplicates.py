"""Pictures that are there more than once: the same pixels, or nearly, also scaled, recompressed, brighter, mirrored or
turned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from dusss_core.manifest import Record
from sites.check.look import THUMB
from sites.check.report import Report, counted

ALIKE = 0.995
"""Correlation of two thumbnails from which pictures are near duplicates."""
MOST_BITS = 6
"""Bits of 64 in which the hashes of near duplicates may differ, at most."""
CROWD = 3000
"""Of more pictures than this with the same quarter of the hash, each is compared with those next to it alone."""
_BANDS = 4
_SHOWN = 12

Pair = tuple[int, int]


def check_duplicates(report: Report, records: Sequence[Record], looks: np.ndarray) -> None:
    """Name exact and near duplicates, within and across splits; and masks that different pictures share."""
    exact = _exact(looks)
    torn = [group for group in exact if len({records[i].split for i in group}) > 1]
    within = [group for group in exact if len({records[i].split for i in group}) == 1]
    report.figures["duplicates"] = {"across_splits": len(torn), "within_split": len(within)}
    same = {i for group in exact for i in group[1:]}
    _say(
        report,
        "error",
        torn,
        records,
        "exact_duplicate_across_splits",
        "[picture is|pictures are] in more than one split",
        "keep each in one split only: test figures are too good otherwise",
    )
    _say(
        report,
        "warning",
        within,
        records,
        "exact_duplicate",
        "[picture appears|pictures appear] more than once in a split",
        "drop the repeated rows",
    )
    differ = [group for group in exact if _contradict(group, records, looks)]
    _say(
        report,
        "warning",
        differ,
        records,
        "duplicates_disagree",
        "[picture of several rows has|pictures of several rows have] other masks, sentences or patients",
        "decide which row is right",
    )
    near = [
        pair
        for pair in near_pairs(looks)
        if not (same & set(pair)) and looks["pixels"][pair[0]] != looks["pixels"][pair[1]]
    ]
    patients = [(i, j) for i, j in near if records[i].patient != records[j].patient or not records[i].patient]
    leaks = [pair for pair in near if records[pair[0]].split != records[pair[1]].split]
    others = [pair for pair in patients if records[pair[0]].split == records[pair[1]].split]
    report.figures["duplicates"] |= {"near_across_splits": len(leaks), "near": len(near)}
    _say(
        report,
        "warning",
        leaks,
        records,
        "near_duplicate_across_splits",
        "[pair of nearly the same picture is|pairs of nearly the same picture are] in different splits",
        "keep them in one split, or drop one: test figures are too good otherwise",
    )
    _say(
        report,
        "warning",
        others,
        records,
        "near_duplicate",
        "[pair|pairs] of nearly the same picture, of different or unnamed patients",
        "drop one of each, or give both the same patient",
    )
    _check_shared_masks(report, records, looks, exact)
    if not (exact or near):
        report.say("ok", "duplicates", "no picture appears twice, nor nearly")


def near_pairs(looks: np.ndarray) -> list[Pair]:
    """Positions (i, j), i < j, of nearly the same picture, also mirrored or turned by quarters."""
    usable = np.flatnonzero(looks["ok"] & (looks["spread"] > 0.01))
    hashes = looks["hash"][usable]
    found: set[Pair] = set()
    for variant in range(8):
        moved = _moved(hashes, variant)
        for a, b in _candidates(hashes, moved):
            i, j = int(usable[a]), int(usable[b])
            if (min(i, j), max(i, j)) not in found and _alike(looks["thumb"][i], looks["thumb"][j], variant):
                found.add((min(i, j), max(i, j)))
    return sorted(found)


def _candidates(hashes: np.ndarray, moved: np.ndarray) -> Iterator[Pair]:
    """Positions (a, b) where `moved[b]` is at most MOST_BITS from `hashes[a]` and one of its quarters is the same."""
    seen: set[Pair] = set()
    for band in range(_BANDS):
        shift = np.uint64(16 * band)
        own, other = ((values >> shift) & np.uint64(0xFFFF) for values in (hashes, moved))
        order = np.argsort(other, kind="stable")
        first = np.searchsorted(other[order], own, "left")
        last = np.searchsorted(other[order], own, "right")
        for a in np.flatnonzero(last - first > 0):
            members = order[first[a] : min(last[a], first[a] + CROWD)]
            members = members[members > a]
            distance = np.bitwise_count(moved[members] ^ hashes[a])
            for b in members[distance <= MOST_BITS]:
                if (int(a), int(b)) not in seen:
                    seen.add((int(a), int(b)))
                    yield int(a), int(b)


def _moved(hashes: np.ndarray, variant: int) -> np.ndarray:
    """Hashes of the pictures after `_turned`: mirroring along an axis turns the signs of its odd frequencies."""
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1).reshape(-1, 8, 8).astype(bool)
    odd = np.arange(8) % 2 == 1
    if variant & 4:
        bits = bits.transpose(0, 2, 1)
    if variant & 1:
        bits = bits ^ odd[None, None, :]
    if variant & 2:
        bits = bits ^ odd[None, :, None]
    bits = bits.reshape(-1, 64).copy()
    bits[:, 0] = False
    return np.packbits(bits, axis=1).view(">u8").reshape(-1).astype(np.uint64)


def _turned(thumb: np.ndarray, variant: int) -> np.ndarray:
    thumb = thumb.T if variant & 4 else thumb
    thumb = thumb[:, ::-1] if variant & 1 else thumb
    return thumb[::-1] if variant & 2 else thumb


def _alike(a: np.ndarray, b: np.ndarray, variant: int) -> bool:
    """Whether the thumbnails agree up to brightness and contrast, as a whole and in what is fine in them."""
    a, b = a.astype(np.float64), _turned(b, variant).astype(np.float64)
    return all(_correlation(x, y) >= least for x, y, least in ((a, b, ALIKE), (_fine(a), _fine(b), ALIKE - 0.045)))


def _fine(thumb: np.ndarray) -> np.ndarray:
    """Without what pictures of one kind have in common: each pixel less the mean of the 3 x 3 around it."""
    padded = np.pad(thumb, 1, mode="edge")
    around = sum(padded[y : y + THUMB, x : x + THUMB] for y in range(3) for x in range(3))
    return thumb - around / 9


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else 0.0


def _exact(looks: np.ndarray) -> list[tuple[int, ...]]:
    same: dict[bytes, list[int]] = defaultdict(list)
    for i in np.flatnonzero(looks["ok"]):
        same[looks["pixels"][i]].append(int(i))
    return [tuple(members) for members in same.values() if len(members) > 1]


def _contradict(group: Sequence[int], records: Sequence[Record], looks: np.ndarray) -> bool:
    masks = {looks["mask_pixels"][i] for i in group if looks["masked"][i]}
    texts = {records[i].text for i in group if records[i].text}
    patients = {records[i].patient for i in group if records[i].patient}
    return len(masks) > 1 or len(texts) > 1 or len(patients) > 1


def _check_shared_masks(report: Report, records, looks: np.ndarray, exact: list[tuple[int, ...]]) -> None:
    """The same mask, pixel by pixel, for different pictures: one was saved under the wrong name."""
    group_of = {i: number for number, group in enumerate(exact) for i in group}
    same: dict[bytes, list[int]] = defaultdict(list)
    for i in np.flatnonzero(looks["masked"] & (looks["covered"] > 0) & (looks["covered"] < 1)):
        same[looks["mask_pixels"][i]].append(int(i))
    shared = [
        tuple(members)
        for members in same.values()
        if len(members) > 1 and len({group_of.get(i, -1 - i) for i in members}) > 1
    ]
    files = [group for group in shared if len({records[i].mask for i in group}) == 1]
    _say(
        report,
        "warning",
        files,
        records,
        "shared_mask_file",
        "[mask is|masks are] named by more than one picture's row",
        "name each picture's own mask",
    )
    _say(
        report,
        _grade(shared, looks),
        [group for group in shared if group not in files],
        records,
        "shared_mask",
        "[mask is|masks are] the same, pixel by pixel, for different pictures",
        "check which picture each was drawn on",
    )


def _grade(shared: list[tuple[int, ...]], looks: np.ndarray) -> str:
    """Simple shapes come again by chance; where many do, it is how this data set is."""
    return "note" if sum(map(len, shared)) > 0.2 * max(1, int(looks["masked"].sum())) else "warning"


def _say(report: Report, level, groups: list[tuple[int, ...]], records, kind: str, what: str, remedy: str) -> None:
    if not groups:
        return
    rows = ["= ".join(f"row {records[i].row} " for i in group[:6]).strip() for group in groups[:_SHOWN]]
    more = f" and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    members = [records[i].row for group in groups for i in group]
    named = f"{counted(len(groups), '{n} ' + what)}: {'; '.join(rows)}{more}"
    report.say(level, "duplicates", named, remedy, kind, members)
