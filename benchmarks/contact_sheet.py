"""Pictures of a simulated run, to be looked at: what a metric hides shows in a minute.

    python benchmarks/contact_sheet.py runs/demo --out sheet.png

One row per picture, some unlabelled training pictures of each site: the picture, the true mask (never trained on), the
text-guided mask, the site's teacher, the federated student. It reads the sites' own folders, so it is for simulated
runs and for a site's own eyes: with real data the sheet shows patients.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from dusss_core.errors import UserError
from feddusss import cli

COLUMNS = ("picture", "true mask", "text-guided mask", "teacher", "student")
TRUE, PREDICTED = (64, 200, 120), (255, 140, 40)


def main(argv: list[str] | None = None) -> int:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished simulated run")
    parser.add_argument("--out", type=Path, default=Path("sheet.png"), help="the PNG to write (sheet.png)")
    parser.add_argument("--per-site", type=int, default=2, help="pictures of each site (2)")
    parser.add_argument("--scale", type=int, default=3, help="enlargement (3)")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_draw, parser, argv)


def _draw(arguments: argparse.Namespace) -> None:
    from PIL import Image

    rows = list(_rows(arguments.run.absolute(), arguments.per_site))
    if not rows:
        raise UserError(f"{arguments.run}: no site has an unlabelled training picture with a mask and a sentence")
    sheet = np.concatenate([np.concatenate([_framed(tile, arguments.scale) for tile in row], axis=1) for row in rows])
    Image.fromarray(_with_header(sheet, len(COLUMNS))).save(arguments.out)
    print(f"{arguments.out}: {len(rows)} pictures; columns: {', '.join(COLUMNS)}")


def _rows(run: Path, count: int) -> Iterator[list[np.ndarray]]:
    """Tiles of `count` unlabelled training pictures of each site, H x W x 3 each."""
    from client.report.sheet import STUDENT, TEACHER, TEXT_MASK, masks_of
    from server.runs.checkpoints import CheckpointStore
    from server.runs.runfolder import read_study
    from server.simulation.look import models_of, newest_models, site_files_of
    from server.study.config import study_digest
    from sites.config import load_site
    from sites.dataset import SiteData

    study, run_key = read_study(run)
    finals = newest_models(CheckpointStore(run / "checkpoints", run_key, study_digest(study)))
    for site in map(load_site, site_files_of(run)):
        data = SiteData(site, study.image)
        train = data.split("train")
        hidden = np.flatnonzero(train.masked & ~train.labelled & train.has_text)
        picked = train.select(hidden[np.linspace(0, len(hidden) - 1, min(count, len(hidden))).astype(int)])
        if not len(picked):
            continue
        models = models_of(study.training(), site, data, run_key, finals, False, "cpu")
        found = masks_of(models, picked, "cpu", site.state_dir / "cache" / "text")
        nothing = [np.zeros_like(mask) for mask in picked.masks]
        shown = [found.get(column, nothing) for column in (TEXT_MASK, TEACHER, STUDENT)]
        for picture, truth, *masks in zip(picked.images, picked.masks, *shown, strict=True):
            tiles = [_outlined(picture, np.asarray(truth), TRUE), *(_outlined(picture, m, PREDICTED) for m in masks)]
            yield [_colour(picture), *tiles]


def _colour(picture: np.ndarray) -> np.ndarray:
    return np.repeat(picture, 3, axis=0).transpose(1, 2, 0) if len(picture) == 1 else picture.transpose(1, 2, 0)


def _outlined(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The picture with half-transparent foreground."""
    tile = _colour(picture).astype(np.float32)
    tile[mask > 0] = 0.55 * tile[mask > 0] + 0.45 * np.array(colour, dtype=np.float32)
    return tile.astype(np.uint8)


def _framed(tile: np.ndarray, scale: int) -> np.ndarray:
    large = tile.repeat(scale, axis=0).repeat(scale, axis=1)
    return np.pad(large, ((2, 2), (2, 2), (0, 0)), constant_values=255)


def _with_header(sheet: np.ndarray, columns: int) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    height = 22
    whole = Image.fromarray(np.pad(sheet, ((height, 0), (0, 0), (0, 0)), constant_values=255))
    drawing, font = ImageDraw.Draw(whole), ImageFont.load_default(14)
    width = sheet.shape[1] // columns
    for i, title in enumerate(COLUMNS):
        drawing.text((i * width + width // 2, height // 2), title, fill=(40, 40, 40), anchor="mm", font=font)
    return np.asarray(whole)


if __name__ == "__main__":
    sys.exit(main())
