"""What stands in on a GPU machine for what it lacks, so that a cell of the grid runs there as anywhere.

Beside the data set these are: the features of the pack in place of the text encoder that they were made with, the
pack's public weights (rounded to half precision) in place of their package, and one cache of prepared pictures for all
cells, since cells of one list differ in little else.
"""

from __future__ import annotations

import fcntl
import json
import lzma
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.grid_pack import ABOUT, DATA, TEXT, TOKENIZER, WEIGHTS
from dusss_core.errors import UserError
from dusss_core.files import read_tensors

if TYPE_CHECKING:
    from dusss_core.text.encoder import Encoder


def unpack(pack: Path, folder: Path) -> dict[str, Any]:
    """Data set, tokenizer, features and weights into `folder`; returns what the pack says of itself.

    Raises:
        UserError: the folder is not one that grid_pack.py made.
    """
    try:
        about: dict[str, Any] = json.loads((pack / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{pack}: no pack for cells", "make it: python -m benchmarks.gpu.grid_pack") from None
    tensors, _ = read_tensors(pack / DATA)
    content, ends = tensors["bytes"].numpy().tobytes(), tensors["ends"].tolist()
    parts = (content[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True))
    names, manifest = json.loads(lzma.decompress(next(parts))), lzma.decompress(next(parts))
    data = folder / "data" / "qata_cov19"
    for name, part in zip(names, parts, strict=True):
        file = data / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(part)
    (data / "manifest.csv").write_bytes(manifest)
    with tarfile.open(pack / TOKENIZER) as archive:
        archive.extractall(folder / "encoder", filter="data")
    for name in (TEXT, WEIGHTS):
        _packed(folder, name).write_bytes(lzma.decompress((pack / name).read_bytes()))
    return about


def stand_in(folder: Path, about: dict[str, Any]) -> None:
    """Put in place what `unpack` has left in `folder`, for the rest of this process; once."""
    from dusss_core.models import public_weights
    from dusss_core.text import encoder

    if encoder.locate.__module__ == __name__:
        return  # in a fork of a process that has it
    own = encoder.Encoder(folder / "encoder", about["digest"], about["width"])
    encoder._folder_of = lambda name: own.folder
    encoder.locate = _always(own)
    _features(_packed(folder, TEXT), own)
    tensors, _ = read_tensors(_packed(folder, WEIGHTS))
    whole = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    public_weights._imagenet = lambda name, section: whole
    _one_cache(folder / "pictures")


def _packed(folder: Path, name: str) -> Path:
    return folder / name.removesuffix(".xz")


def _always(own: Encoder) -> Callable[..., Encoder]:
    def locate(name: str, memory: Path | None = None) -> Encoder:
        return own

    return locate


def _features(file: Path, own: Encoder) -> None:
    from dusss_core.text import bank

    known, *features = bank._read_cache(file, own.digest, own.width)
    if not known:
        raise UserError(f"{file.name}: the features are of another encoder", "make the pack anew from this checkout")
    bank.locate = _always(own)
    bank._read_cache = lambda file, digest, width: (dict(known), *features)
    bank._write_cache = lambda *given: None
    bank.TextEncoder = _no_encoder


def _no_encoder(config: Any) -> Any:
    raise UserError("a wording is not in the pack, and there is no text encoder here", "make the pack anew")


def _one_cache(cache: Path) -> None:
    """Pictures are prepared once for all cells: who comes while they are made waits."""
    from sites import dataset, packing

    build = packing.load_or_build

    def once(own: Path | None, digest: str, make: Any) -> Any:
        with _alone(cache / f"{digest}.lock"):
            return build(cache / digest, digest, make)

    dataset.load_or_build = once


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
