"""What many tests need alike is made once and handed out again: drawn hospitals, encoded sentences.

The same arguments give the same bytes; tests/sites/synth and tests/dusss_core/text hold that of the true functions.
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

import sites.synth.hospitals
from dusss_core.config import TextConfig
from dusss_core.text import bank
from dusss_core.text.encoder import TextEncoder
from sites.synth.config import SynthConfig


def install(patch: pytest.MonkeyPatch) -> None:
    """Have simulations copy hospitals that are drawn already, and take features of sentences that are encoded already.

    Processes that a test starts draw and encode for themselves.
    """
    patch.setattr("server.simulation.materialise.write_hospitals", write_hospitals)
    patch.setattr(bank, "TextEncoder", lambda config: _loaded(config.model_dump_json()))
    patch.setattr(bank, "_encode", lambda encoder, texts: _encoded(encoder, tuple(texts)))


def write_hospitals(folder: Path, config: SynthConfig, seed: int) -> list[Path]:
    """As `sites.synth.hospitals.write_hospitals`, but copies hospitals that were drawn before."""
    alone = [config.model_copy(update={"hospitals": [hospital]}) for hospital in config.hospitals]
    return [_copy(_drawn(each.model_dump_json(), seed), Path(folder)) for each in alone]


_folder = TemporaryDirectory(prefix="hospitals-")


def _copy(hospital: Path, folder: Path) -> Path:
    return Path(shutil.copytree(hospital, folder / hospital.name, dirs_exist_ok=True)) / "manifest.csv"


@cache
def _drawn(config: str, seed: int) -> Path:
    folder = Path(_folder.name) / str(_drawn.cache_info().misses)
    settings = SynthConfig.model_validate_json(config)
    (manifest,) = sites.synth.hospitals.write_hospitals(folder, settings, seed)
    return manifest.parent


@cache
def _loaded(config: str) -> TextEncoder:
    return TextEncoder(TextConfig.model_validate_json(config))


@cache
def _encoded(encoder: TextEncoder, texts: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    return _encode(encoder, texts)


_encode = bank._encode
