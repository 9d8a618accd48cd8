"""A training state in a few files that are small enough to come back from a GPU machine.

Tensors are kept as they are where that fits (`exact`). Where it does not, what is chosen and what trains on are kept in
float16, and what heals by itself in 8 bits:

    weights, best weights   float16: each off by 2^-11 of itself at most, once per call. A finished run keeps no more
                            than its best weights and the vision-language model, which fit as they are. The latter is
                            never rounded: its masks are the same in every call.
    teacher                 its distance from the student, in float8 with a scale per tensor, off by a sixteenth at
                            most; the average forgets that within some hundred steps.
    second moments          their roots likewise, never rounded to 0; a step's size is off by a sixteenth at most, and
                            right again after a thousand steps.
    first moments           likewise; where that is still too large they are left out, and grow again within ten steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dusss_core.errors import UserError
from dusss_core.files import write_bytes

PIECE = 15_000_000
"""Bytes of one file, at most."""
PIECES = 7
"""Files, at most; an eighth is result.json."""
ROUNDINGS = ("exact", "rounded", "rounded, without first moments")
_SMALL = 4096
"""Tensors with fewer numbers are kept as they are: normalisation layers, biases, counters."""
_EIGHT = torch.float8_e4m3fn
_TEACHER, _FIRST, _SECOND = "objective.teacher.", ".exp_avg", ".exp_avg_sq"


def write_state(
    folder: Path, state: Mapping[str, Mapping[str, Tensor]], largest: int = PIECE * PIECES
) -> dict[str, Any]:
    """Write groups of tensors ("now", "private", "best", "vlm", ...) as `state-1.part`, ... in place of those there.

    Args:
        state: CPU tensors; in "private", names as `PhaseTrainer.private` gives them, beside "now", what it shares.
        largest: bytes of all files together.

    Returns:
        What `read_state` needs to know: number of pieces, digest, and which of ROUNDINGS it had to be.

    Raises:
        UserError: it does not fit in any way.
    """
    from safetensors.torch import save

    for rounding in ROUNDINGS:
        blob = save(_rounded(state, rounding))
        if len(blob) <= largest:
            break
    else:
        raise UserError(
            f"the state takes {len(blob) / 1e6:.0f} MB at least", f"more than {largest / 1e6:.0f} do not fit"
        )
    pieces = [blob[start : start + PIECE] for start in range(0, len(blob), PIECE)]
    for old in folder.glob("state-*.part"):
        old.unlink()
    for number, piece in enumerate(pieces, start=1):
        write_bytes(folder / f"state-{number}.part", piece)
    return {"pieces": len(pieces), "sha256": hashlib.sha256(blob).hexdigest(), "rounding": rounding}


def read_state(folder: Path, about: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """What `write_state` wrote, float32 again.

    Raises:
        UserError: a piece is missing, or of another state.
    """
    from safetensors.torch import load

    try:
        blob = b"".join((folder / f"state-{i + 1}.part").read_bytes() for i in range(about["pieces"]))
    except OSError as error:
        raise UserError(
            f"{folder}: a piece of the state is missing ({error.filename})", "copy all of its files"
        ) from None
    if hashlib.sha256(blob).hexdigest() != about["sha256"]:
        raise UserError(
            f"{folder}: the pieces are not of the state that result.json names", "copy all of its files anew"
        )
    return _whole(load(blob))


# ---- rounding ----


def _rounded(state: Mapping[str, Mapping[str, Tensor]], rounding: str) -> dict[str, Tensor]:
    """As one dictionary: GROUP/NAME, and GROUP/NAME/scale beside what is in 8 bits."""
    flat = {}
    for group, tensors in state.items():
        for name, value in tensors.items():
            key = f"{group}/{name}"
            as_it_is = rounding == ROUNDINGS[0] or group == "vlm"
            if as_it_is or not value.is_floating_point() or value.numel() < _SMALL:
                flat[key] = value.contiguous().clone()
            elif name.startswith(_TEACHER):
                flat |= _eighth(key, value - state["now"][name.removeprefix(_TEACHER)])
            elif name.endswith(_SECOND):
                flat |= _eighth(key, value.sqrt(), above_zero=True)
            elif name.endswith(_FIRST):
                # a 0 in its place, which keeps the shape
                flat |= {key: value.new_zeros(())} if rounding == ROUNDINGS[2] else _eighth(key, value)
            else:
                flat[key] = value.half().contiguous()
    return flat


def _eighth(key: str, value: Tensor, above_zero: bool = False) -> dict[str, Tensor]:
    """In 8 bits, and the scale. `above_zero`: what is not 0 does not become 0."""
    kind = torch.finfo(_EIGHT)
    scale = value.abs().max().clamp(min=1e-30) / kind.max
    scaled = value / scale
    if above_zero:
        smallest = kind.smallest_normal / 8  # three bits below the normal numbers
        scaled = torch.where(value > 0, scaled.clamp(min=smallest), scaled)
    return {key: scaled.to(_EIGHT).contiguous(), f"{key}/scale": scale}


def _whole(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    state: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        group, name = key.split("/", 1)
        if name.endswith("/scale"):
            continue
        if f"{key}/scale" in flat:
            value = value.float() * flat[f"{key}/scale"]
            if name.endswith(_SECOND):
                value = value.square()
        elif value.dtype == torch.float16:
            value = value.float()
        state.setdefault(group, {})[name] = value
    for name, value in state.get("private", {}).items():
        if name.startswith(_TEACHER) and f"private/{name}/scale" in flat:
            state["private"][name] = value + state["now"][name.removeprefix(_TEACHER)]
        elif name.endswith(_FIRST) and value.shape != state["private"][f"{name}_sq"].shape:
            state["private"][name] = torch.zeros_like(state["private"][f"{name}_sq"])
    return state
