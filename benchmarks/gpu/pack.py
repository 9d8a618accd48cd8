"""Makes the folder that a GPU machine without network needs beside the checkout: packages, pictures, text features.

    make gpu-pack                         FEDDUSSS_DATA names the folder of the data sets; into .gpu
    python -m benchmarks.gpu.pack --data DIR --out .gpu

It holds the pictures of the accuracy grid's profile `gpu`, as benchmarks/gpu/packed.py reads them, and the packages
that such a machine lacks. Together they may have 60 MB, so that folder and checkout travel in one piece. There is no
text encoder in it: the features of all wordings are.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.packed import ABOUT, ENCODER, LARGEST, MASKS, PICTURES, TEXT, WHEELS, Label
from dusss_core.errors import UserError
from feddusss import cli

if TYPE_CHECKING:
    from dusss_core.manifest import Record

PYTHON = "3.12"
PACKAGES = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions")
"""What a machine lacks that has torch, timm and transformers; in the releases of constraints.txt."""
PLATFORMS = ("manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64")
_BEHIND_STRIDE_16 = ("blocks.5", "blocks.6", "conv_head", "bn2", "classifier")
"""Parts of the image encoder that a patch stride of 16 does not build."""
_ROOT = Path(__file__).parents[2]


def main(argv: list[str] | None = None) -> int:
    """Make the folder and print what each part takes."""
    parser = parser_of(__doc__, Path(".gpu"))
    parser.add_argument("--seed", type=int, default=1, help="of the grid's cells: who is a validation picture (1)")
    parser.add_argument("--no-wheels", action="store_true", help="leave the packages out")
    return cli.run(_main, parser, argv)


def _main(arguments: argparse.Namespace) -> int:
    data = data_of(arguments)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if not arguments.no_wheels:
        download(PACKAGES, out / WHEELS)
    write_data(data, out, arguments.seed)
    tell_sizes(out)
    return cli.OK


def parser_of(description: str, out: Path) -> argparse.ArgumentParser:
    """With the arguments of every pack.

    Args:
        out: the folder to make, where no other is named.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets (FEDDUSSS_DATA)")
    parser.add_argument("--out", type=Path, default=out, help=f"the folder to make ({out})")
    cli.add_common_arguments(parser, overrides=False)
    return parser


def data_of(arguments: argparse.Namespace) -> Path:
    """The folder of the data sets.

    Raises:
        UserError: nobody names one.
    """
    if arguments.data is None and not os.environ.get("FEDDUSSS_DATA"):
        raise UserError("the folder of the data sets is not named", "set FEDDUSSS_DATA, or give --data DIR")
    return arguments.data or Path(os.environ["FEDDUSSS_DATA"])


def tell_sizes(out: Path) -> None:
    """Print what each part of `out` takes.

    Raises:
        UserError: together they are too large.
    """
    sizes = sizes_of(out)
    for name, size in sizes.items():
        print(f"{name:28}{size / 1e6:8.2f} MB")
    total = sum(sizes.values())
    print(f"{'together':28}{total / 1e6:8.2f} of {LARGEST / 1e6:.0f} MB")
    if total > LARGEST:
        raise UserError(f"{out}: {total / 1e6:.1f} MB are more than {LARGEST / 1e6:.0f}", "delete it and make it anew")


def sizes_of(folder: Path) -> dict[str, int]:
    """Bytes of each file of the folder, and of its packages together."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    sizes = {file.name: file.stat().st_size for file in files}
    if (folder / WHEELS).is_dir():
        sizes[WHEELS] = sum(file.stat().st_size for file in (folder / WHEELS).iterdir())
    return sizes


def download(packages: Sequence[str], folder: Path) -> None:
    """The wheels of `packages` into `folder`, from where pip is set to look.

    Raises:
        UserError: pip did not find them.
    """
    pinned = dict(re.findall(r"^([\w-]+)==(\S+?);?\s*$", (_ROOT / "constraints.txt").read_text(), re.MULTILINE))
    folder.mkdir(exist_ok=True)
    for wheel in folder.glob("*.whl"):  # of another release
        wheel.unlink()
    line = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--disable-pip-version-check",
        "--no-deps",
        "-d",
        str(folder),
    ]
    line += ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    line += [part for platform in PLATFORMS for part in ("--platform", platform)]
    done = subprocess.run([*line, *(f"{name}=={pinned[name]}" for name in packages)], check=False)
    if done.returncode:
        raise UserError("pip could not download the packages (see above)", "mend that, or give --no-wheels")


def write_data(data: Path, out: Path, seed: int) -> None:
    """Pictures, masks, records, text features and public weights of the grid's cells with `seed`.

    Raises:
        UserError: no such data set, or a package is not installed.
    """
    from benchmarks.grid.cell import Cell
    from benchmarks.grid.hospitals import partition_of
    from dusss_core.files import write_tensors, write_text
    from dusss_core.manifest import read_manifest
    from server.study.config import StudyConfig
    from sites.partition import PartitionConfig, partition

    cell = Cell("qata", 1.0, "dusss", "centralized", "gpu", seed)
    known = {key: value for key, value in cell.base().items() if key in StudyConfig.model_fields}
    study = StudyConfig.model_validate(known)
    sites = partition(
        read_manifest(data / cell.source()["data"]["path"]), PartitionConfig.model_validate(partition_of(cell)), seed
    )
    records = [(site, record) for site, members in sites.items() for record in members]
    sentences = sorted({record.text for _, record in records if record.text})
    number = {sentence: i for i, sentence in enumerate(sentences)}
    for name, encode in ((PICTURES, _picture), (MASKS, _mask)):
        write_tensors(out / name, joined([encode(record, study.image.size) for _, record in records]))
    text = _text(sentences, study, out / TEXT)
    write_tensors(out / ENCODER, _encoder())
    ranks = {site: _ranks(members) for site, members in sites.items()}
    rows = [
        Label(record.id, site, record.split, number.get(record.text, -1), ranks[site].get(record.id, -1))
        for site, record in records
    ]
    about = {"seed": seed, "size": study.image.size, "text": text, "sentences": sentences}
    write_text(out / ABOUT, json.dumps({**about, "records": [list(row) for row in rows]}))


def joined(files: Sequence[bytes]) -> dict[str, Any]:
    """One behind the other, and where each ends."""
    import torch

    ends = torch.tensor([len(file) for file in files]).cumsum(0)
    return {"bytes": torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8), "ends": ends}


def _picture(record: Record, size: int) -> bytes:
    """The file itself where it is a WebP of that size, else one without loss: decoded it is what a site prepares."""
    from PIL import Image

    from dusss_core.readers import read_image
    from sites.prepare import resize_image, to_bytes

    content = Path(record.image).read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        if picture.format == "WEBP" and picture.size == (size, size):
            return content
    image = to_bytes(resize_image(read_image(record.image, 3), size))
    return _saved(Image.fromarray(image.transpose(1, 2, 0)), "WEBP", lossless=True)


def _mask(record: Record, size: int) -> bytes:
    """A PNG of one bit per pixel."""
    from PIL import Image

    from sites.prepare import load_mask, resize_mask

    with Image.open(record.image) as picture:
        shape = picture.size[::-1]
    mask = resize_mask(load_mask(record, shape, 1), size, 1)
    return _saved(Image.fromarray(mask.astype(bool)), "PNG", optimize=True)


def _saved(picture: Any, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def _ranks(records: Sequence[Record]) -> dict[str, int]:
    """Place of each training record in the site's order of labels: `packed.labelled` takes the first of them."""
    from dusss_core.seeds import unit_hash

    names = [record.id for record in records if record.split == "train" and record.labelled]
    names.sort(key=lambda name: unit_hash("label", name))
    return {name: i for i, name in enumerate(names)}


def _text(sentences: Sequence[str], study: Any, file: Path) -> dict[str, Any]:
    """Write the project's own cache of all wordings' features, compressed; with it a bank needs no encoder."""
    from dusss_core.files import write_bytes
    from dusss_core.text.bank import build_text_bank
    from dusss_core.text.encoder import locate

    encoder = locate(study.vlm.text.encoder)
    with tempfile.TemporaryDirectory() as folder:
        build_text_bank(sentences, study.vlm.text, Path(folder))
        cache = next(Path(folder).glob("text_*.safetensors"))
        write_bytes(file, lzma.compress(cache.read_bytes()))
        return {"file": cache.name, "digest": encoder.digest, "width": encoder.width}


def _encoder() -> dict[str, Any]:
    """Public weights of the image encoder under timm's names, as far as they are built, in float16."""
    from dusss_core.models.public_weights import IMAGENET_ENCODER, _imagenet

    tensors = {k: v for k, v in _imagenet(IMAGENET_ENCODER, "vlm").items() if not k.startswith(_BEHIND_STRIDE_16)}
    return {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}


if __name__ == "__main__":
    sys.exit(main())
