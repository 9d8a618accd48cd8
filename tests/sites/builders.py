"""Small data sets that the tests of this room write."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from dusss_core.config import ImageConfig
from sites.config import SiteConfig
from sites.dataset import SiteData


def picture(number: int, height: int = 48, width: int = 40, channels: int = 1) -> np.ndarray:
    """A picture that is like no other, uint8."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def mask(number: int, height: int = 48, width: int = 40) -> np.ndarray:
    """A square of 255 on 0, uint8."""
    values = np.zeros((height, width), np.uint8)
    values[5 + number % 5 : 25, 5:25] = 255
    return values


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def rows_of(folder: Path, n: int, splits: tuple[str, ...] = ("train",), **sizes) -> list[dict]:
    """Write n pictures with masks and return their rows."""
    rows = []
    for i in range(n):
        save(folder / f"images/{i}.png", picture(i, **sizes))
        save(folder / f"masks/{i}.png", mask(i, **sizes))
        rows.append(
            {
                "id": f"r{i}",
                "image": f"images/{i}.png",
                "mask": f"masks/{i}.png",
                "text": f"finding number {i % 3}",
                "split": splits[i % len(splits)],
                "patient": f"p{i // 2}" if len(splits) == 1 else f"p{i}",
            }
        )
    return rows


def write_site(folder: Path, rows: list[dict]) -> Path:
    write_rows(folder / "manifest.csv", rows)
    site = folder / "site.yaml"
    site.write_text("site: here\ndata: {manifest: manifest.csv}\nstate_dir: state\n")
    return site


def site_data(folder: Path, rows: list[dict], image: ImageConfig | None = None, **data) -> SiteData:
    manifest = write_rows(folder / "manifest.csv", rows)
    site = SiteConfig(site="here", data={"manifest": manifest, **data}, state_dir=folder / "state")
    return SiteData(site, image or ImageConfig(size=32))
