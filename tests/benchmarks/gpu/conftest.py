"""A data set of a few pictures that looks like QaTa-COV19, and the pack that is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.gpu.made_up import SENTENCES
from benchmarks.gpu.pack import write_data
from dusss_core.manifest import Record, write_manifest


@dataclass(frozen=True)
class Small:
    """Where both lie."""

    data: Path
    pack: Path


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> Small:
    """Twenty pictures of three sites; one is larger than the others, one a WebP of the right size."""
    folder = tmp_path_factory.mktemp("gpu")
    data = folder / "data" / "qata_cov19"
    data.mkdir(parents=True)
    draw = np.random.default_rng(1)
    records = []
    for i in range(20):
        size = 300 if i == 3 else 224
        mask = np.zeros((size, size), np.uint8)
        mask[40 : 90 + 4 * i, 60:120] = 255
        smooth = np.asarray(Image.fromarray(draw.integers(0, 255, (14, 14), np.uint8)).resize((size, size)))
        picture = data / (f"{i}.webp" if i == 4 else f"{i}.png")
        Image.fromarray(smooth | (mask // 4)).save(picture)
        Image.fromarray(mask).save(data / f"{i}_mask.png")
        split = "test" if i >= 16 else "val" if i in (9, 11) else "train"
        family = "covid" if i < 6 else "cxr"
        text = "" if i == 7 else SENTENCES[i % 3]
        records.append(
            Record(
                f"r{i}",
                picture,
                data / f"{i}_mask.png",
                text,
                split,
                patient=f"p{i}" if family == "cxr" else "",
                labelled=True,
                extra={"family": family},
            )
        )
    write_manifest(data / "manifest.csv", records)
    pack = folder / "pack"
    pack.mkdir()
    write_data(folder / "data", pack, seed=1)
    return Small(folder / "data", pack)
