"""Bytes and processor time of what travels under each `federation.wire`, at the paper's size or another.

    python benchmarks/compression.py
    python benchmarks/compression.py --set student.width=16 --set vlm.text.tuning=lora

One message: the bytes that travel, file head included; and CPU-seconds on one thread, the least of five: of whoever
encodes, of whoever decodes, and of the site's own disk, where it keeps the model and what its update lost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

PAPER = ["student.width=64", "vlm.image_encoder=resnet18", "local_norm=false"]


def main(argv: list[str] | None = None) -> None:
    """Measure, and print a table for each phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a config key")
    parser.add_argument("--json", type=Path, help="keep what was measured in this file")
    arguments = parser.parse_args(argv)
    settings = [*PAPER, *arguments.set]

    import torch

    from dusss_core.phases import Phase
    from dusss_core.training import initial_shared
    from feddusss import compression, wire
    from server.study.config import load_study

    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for phase in Phase:
        model = initial_shared(load_study("demo", settings), phase)
        draw = torch.Generator().manual_seed(1)
        after = {
            name: tensor + 0.01 * torch.randn(tensor.shape, generator=draw) if wire.is_rounded(name, tensor) else tensor
            for name, tensor in model.items()
        }
        whole = wire.size(wire.pack(model))
        numbers = sum(tensor.numel() for tensor in model.values())
        print(f"\n{phase}: {numbers / 1e6:.2f} million numbers in {len(model)} tensors\n")
        print("| wire | bytes | of float32 | encode | decode | kept at the site |\n|---|---|---|---|---|---|")
        for kind in wire.WIRES:
            codec = compression.codec(kind, compression.SHARE)
            size, *seconds = _plain(kind, model, after) if codec is None else _compressed(codec, phase, model, after)
            told = " | ".join(f"{value:.3f}" for value in seconds)
            print(f"| {kind} | {size} | {100 * size / whole:.1f} % | {told} |")
            named = dict(zip(("encode_s", "decode_s", "kept_s"), seconds, strict=True))
            rows.append({"phase": str(phase), "wire": kind, "bytes": size, "share": size / whole, **named})
    if arguments.json:
        from benchmarks import measured

        measured.write(arguments.json, {"what": "compression", **measured.stamp(), "set": arguments.set, "rows": rows})


def _plain(kind: str, model: dict, after: dict) -> tuple[int, float, float, float]:
    from feddusss import wire

    def encode():
        return wire.pack(wire.rounded(wire.difference(after, model)) if kind == "bfloat16" else after)

    def decode():
        tensors = wire.views(record)
        return wire.added(wire.widened(tensors), model) if kind == "bfloat16" else tensors

    record, encoding = _timed(encode)
    return wire.size(record), encoding, _timed(decode)[1], 0.0


def _compressed(codec, phase, model: dict, after: dict) -> tuple[int, float, float, float]:
    from client.state.store import SiteState
    from dusss_core.files import digest_of_tensors
    from feddusss import compression, wire

    (parts, lost), encoding = _timed(lambda: compression.compress(codec, after, model, {}))
    record, packing = _timed(lambda: wire.pack(parts))
    _, decoding = _timed(lambda: compression.expand(codec, wire.views(record), model))
    with tempfile.TemporaryDirectory() as folder:
        state, digest = SiteState(Path(folder), "study", "run"), digest_of_tensors(model)

        def keep():
            state.save_exchanged(phase, 1, digest, model, lost)
            digest_of_tensors(state.reference(phase, digest))
            return digest_of_tensors(state.lost(phase, 2))

        _, keeping = _timed(keep)
    return wire.size(record), encoding + packing, decoding, keeping


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and the least CPU-seconds of five."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        result = work()
        best = min(best, time.process_time() - began)
    return result, best


if __name__ == "__main__":
    main()
