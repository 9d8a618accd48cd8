"""Pictures of a simulated run, to be looked at: what a metric hides shows in a minute.

    python benchmarks/contact_sheet.py runs/demo --out sheet.png

One row per picture, some unlabelled training pictures of each site: the picture, the true mask (never trained on), the
text-guided mask, the site's teacher, the federated student. It reads the sites' own folders, so it is for simulated
runs and for a site's own eyes: with real data the sheet shows patients.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from dusss_core.phases import Phase
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

    rows = [row for site in _sites(arguments.run) for row in _rows(arguments.run, site, arguments.per_site)]
    sheet = np.concatenate([np.concatenate([_framed(tile, arguments.scale) for tile in row], axis=1) for row in rows])
    Image.fromarray(_with_header(sheet, len(COLUMNS))).save(arguments.out)
    print(f"{arguments.out}: {len(rows)} pictures; columns: {', '.join(COLUMNS)}")


def _sites(run: Path) -> list[Path]:
    return [run / "sites" / file for file in json.loads((run / "sites" / "index.json").read_text())["site_files"]]


def _rows(run: Path, site_file: Path, count: int) -> list[list[np.ndarray]]:
    """Tiles of `count` unlabelled training pictures of a site, H x W x 3 each."""
    from client.state.store import SiteState
    from dusss_core.build import build_student
    from dusss_core.files import read_tensors, with_prefix
    from dusss_core.inference import predict_logits
    from dusss_core.metrics import to_classes
    from dusss_core.models.weights import load_tensors
    from dusss_core.text.bank import build_text_bank
    from dusss_core.training import text_guided_masks, with_own_statistics
    from server.simulation.local import load_local
    from server.study.config import load_study

    study = load_study(run / "config.yaml")
    site = load_local(site_file, study)
    train = site.splits["train"]
    hidden = np.flatnonzero(train.masked & ~train.labelled & train.has_text)
    picked = train.select(hidden[np.linspace(0, len(hidden) - 1, min(count, len(hidden))).astype(int)])
    if not len(picked):
        return []

    def predicted(tensors) -> np.ndarray:
        model = build_student(study)
        load_tensors(model, tensors)
        return to_classes(predict_logits(model, picked.images, study.image, "cpu", 32))

    key = json.loads((run / "run.json").read_text())["run_key"]
    state = SiteState(site_file.parent / "state", study.study, key)

    def final(name: str, phase: str) -> dict:
        tensors, metadata = read_tensors(run / "checkpoints" / f"{name}.safetensors")
        whole = {**tensors, **state.local_layers(phase, int(metadata["round"]))}
        bank = build_text_bank(train.sentences, study.vlm.text, site.text_cache, "cpu", augmented=False)
        return with_own_statistics(study, phase, whole, train, bank)

    student = final("student", Phase.SEGMENT)
    private = state.newest(Phase.SEGMENT, before=10**9)
    teacher = with_prefix(private[0], "objective.teacher.") if private else {}
    masks = [np.asarray(picked.masks)]
    if study.method.text_mask:
        vlm = final("vlm", Phase.PRETRAIN)
        bank = build_text_bank(picked.sentences, study.vlm.text, site.text_cache, "cpu", augmented=False)
        masks.append(to_classes(np.asarray(text_guided_masks(study, vlm, picked, bank), dtype=np.float32)))
    else:
        masks.append(np.zeros_like(masks[0]))
    masks += [predicted(teacher) if teacher else np.zeros_like(masks[0]), predicted(student)]
    return [
        [_colour(picture), *(_outlined(picture, mask[i], TRUE if mask is masks[0] else PREDICTED) for mask in masks)]
        for i, picture in enumerate(picked.images)
    ]


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
