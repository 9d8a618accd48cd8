"""Controls: what a method reaches with sentences that tell it nothing of the picture.

constant    every picture has the same sentence
wrong       each picture has another picture's sentence, of its site and split: a permutation drawn by the seed, in
            which no picture gets the sentence that it has itself, as far as there are enough others

A picture without a sentence stays without one. Both read what the site had from a column that they keep, so that a cell
that is begun again has the same sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dusss_core.manifest import SPLITS, Record, read_manifest, write_manifest
from dusss_core.seeds import derive_seed

CONSTANT = "Finding."
"""It has no other wording, and may be mirrored."""
OWN = "own_sentence"
"""Column that keeps what the site had."""


def constant(records: Sequence[Record], seed: int, site: str) -> list[str]:
    """The same sentence for all that have one."""
    return [CONSTANT if record.text else "" for record in records]


def wrong(records: Sequence[Record], seed: int, site: str) -> list[str]:
    """Each record's new sentence."""
    found = [""] * len(records)
    for split in SPLITS:
        places = [i for i, record in enumerate(records) if record.split == split and record.text]
        draw = np.random.default_rng(derive_seed(seed, "wrong_sentence", site, split))
        for place, text in zip(places, others([records[i].text for i in places], draw), strict=True):
            found[place] = text
    return found


def others(texts: Sequence[str], draw: np.random.Generator) -> list[str]:
    """`texts` in another order, in which as few as possible stand where an equal one stood.

    A draw at random, whose matches are then exchanged with places drawn at random: which sentence a picture gets tells
    nothing of its own, but that it is another.
    """
    own = np.unique(np.asarray(texts, dtype=object).astype(str), return_inverse=True)[1]
    order = draw.permutation(len(own))
    for place in np.flatnonzero(own[order] == own):
        if own[order[place]] != own[place]:
            continue  # mended by an exchange before
        free = np.flatnonzero((own[order] != own[place]) & (own != own[order[place]]))
        if len(free):
            other = draw.choice(free)
            order[[place, other]] = order[[other, place]]
    return [texts[i] for i in order]


CONTROLS: dict[str, Callable[[Sequence[Record], int, str], list[str]]] = {"constant": constant, "wrong": wrong}


def tell(site_files: Sequence[Path], control: str, seed: int) -> None:
    """Write the control's sentences, a key of CONTROLS, into the manifests of the sites."""
    for file in site_files:
        manifest, site = file.parent / "manifest.csv", file.parent.name
        records = [
            replace(record, text=record.extra.get(OWN, record.text), extra={OWN: record.text, **record.extra})
            for record in read_manifest(manifest)
        ]
        texts = CONTROLS[control](records, seed, site)
        # further sentences of a picture would tell what the control withholds
        told = [replace(record, text=text, more_texts=()) for record, text in zip(records, texts, strict=True)]
        write_manifest(manifest, told)
