"""Makes the folder with which whole cells of the accuracy grid run on a GPU machine without network.

    python -m benchmarks.gpu.grid_pack --data DIR --out .gpu/grid

It holds the data set's own files, the features of all sentences that the profiles `cpu` and `full` ask for, the text
encoder's tokenizer without its weights, the public weights of the image encoder in half precision, and Flower with what
it needs. benchmarks/gpu/grid.py reads it.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.pack import PACKAGES, PLATFORMS, PYTHON, data_of, download, joined, parser_of, tell_sizes
from feddusss import cli

DATA, TEXT, WEIGHTS = "data.safetensors", "text.safetensors.xz", "encoder.safetensors.xz"
TOKENIZER, SITE_PACKAGES, ABOUT = "tokenizer.tar.xz", "packages.tar.xz", "about.json"
_FLOWER = (
    "flwr",
    "cryptography",
    "cffi",
    "pycparser",
    "pycryptodome",
    "grpcio-health-checking",
    "protobuf",
    "iterators",
)
_NOT_BUILT = ("conv_head", "bn2", "classifier")
"""Parts of the image encoder that no network of the profiles builds."""
VIEWS, TOKENS = 1, 32


def main(argv: list[str] | None = None) -> int:
    """Make the folder and print what each part takes."""
    return cli.run(_main, parser_of(__doc__, Path(".gpu/grid")), argv)


def _main(arguments: argparse.Namespace) -> int:
    data = data_of(arguments)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    _write_packages(out / SITE_PACKAGES)
    write(data, out)
    tell_sizes(out)
    return cli.OK


def write(data: Path, out: Path) -> None:
    """All but the packages."""
    from benchmarks.grid.trial import provenance

    sentences = _write_data(data / "qata_cov19", out / DATA)
    about = _write_text(sentences, out)
    _write_weights(out / WEIGHTS)
    (out / ABOUT).write_text(json.dumps({**about, "commit": provenance()["commit"]}), encoding="utf-8")


def _write_packages(target: Path) -> None:
    """What of the wheels is imported, in one archive: half of a wheel is tests, and xz packs what is left better."""
    with tempfile.TemporaryDirectory() as folder:
        wheels, site = Path(folder, "wheels"), Path(folder, "site")
        download([*PACKAGES, *_FLOWER], wheels)
        line = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
        line += ["--no-compile", "--only-binary=:all:", "--python-version", PYTHON, "--target", str(site)]
        line += [f"--platform={platform}" for platform in PLATFORMS]
        subprocess.run([*line, *map(str, wheels.glob("*.whl"))], check=True)
        for useless in ("bin", "Crypto/SelfTest", "flwr/cli/new", "pydantic/v1", "flwr/supercore/app_template"):
            shutil.rmtree(site / useless, ignore_errors=True)
        with tarfile.open(target, "w:xz", preset=9) as archive:
            for file in sorted(site.rglob("*")):
                if file.is_file() and file.suffix not in (".pyi", ".md"):
                    archive.add(file, file.relative_to(site).as_posix())


def _write_data(folder: Path, target: Path) -> list[str]:
    """The manifest and the files that it names. Returns its sentences."""
    from dusss_core.files import write_tensors

    manifest = (folder / "manifest.csv").read_bytes()
    rows = list(csv.DictReader(io.StringIO(manifest.decode("utf-8"))))
    names = sorted({row["image"] for row in rows} | {row["mask"] for row in rows if row["mask"]})
    files = [(folder / name).read_bytes() for name in names]
    packed = lzma.compress(json.dumps(names).encode()), lzma.compress(manifest)
    write_tensors(target, joined([*packed, *files]))
    return sorted({row["text"] for row in rows if row["text"]})


def _write_text(sentences: list[str], out: Path) -> dict[str, Any]:
    """The project's own cache of features, and the tokenizer."""
    from benchmarks.grid.sentences import CONSTANT
    from dusss_core.config import TextConfig
    from dusss_core.text.bank import build_text_bank
    from dusss_core.text.encoder import locate

    config = TextConfig(views=VIEWS, max_tokens=TOKENS)
    encoder = locate(config.encoder)
    with tempfile.TemporaryDirectory() as folder:
        build_text_bank([*sentences, CONSTANT], config, Path(folder))
        cache = next(Path(folder).glob("text_*.safetensors"))
        (out / TEXT).write_bytes(lzma.compress(cache.read_bytes(), preset=9))
    with tarfile.open(out / TOKENIZER, "w:xz") as archive:
        for file in sorted(encoder.folder.iterdir()):
            if file.is_file() and file.stat().st_size < 2_000_000 and file.suffix in (".json", ".txt"):
                archive.add(file, file.name)
    return {"digest": encoder.digest, "width": encoder.width}


def _write_weights(target: Path) -> None:
    from safetensors.torch import save

    from dusss_core.models.public_weights import IMAGENET_ENCODER, _imagenet

    tensors = {k: v for k, v in _imagenet(IMAGENET_ENCODER, "vlm").items() if not k.startswith(_NOT_BUILT)}
    half = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
    target.write_bytes(lzma.compress(save(half), preset=9))


if __name__ == "__main__":
    sys.exit(main())
