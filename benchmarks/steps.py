"""What a training step costs in both phases, and the prediction of a picture, each against a plain eager float32 form.

    python benchmarks/steps.py                                      the demo's networks: some minutes on two cores
    python benchmarks/steps.py --sizes qata_cpu --threads 2
    python benchmarks/steps.py --sizes paper --batches 8 --repeats 3     minutes on a CPU
    python benchmarks/steps.py --device cuda --sizes paper --compile

All forms of a step (benchmarks/gpu/variants.py) are timed in turn, so that what else the machine does meets all of
them; a ratio is the median over the turns of eager's time by the form's, and above 1 the form is the faster one.
Pictures are made up, and lie in memory. Prints a table, and writes it as JSON to --out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.measured import RESULTS, stamp
from dusss_core.errors import UserError
from feddusss import cli

_PROFILED_STEPS = 12


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="demo", help="of demo, qata_cpu, paper, with commas between (demo)")
    parser.add_argument("--phases", default="pretrain,segment,predict", help="(pretrain,segment,predict)")
    parser.add_argument("--batches", default="8,32", help="pictures per step (8,32)")
    parser.add_argument("--threads", default="1,2", help="numbers of CPU threads (1,2); on a GPU the first one counts")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU where there is one")
    parser.add_argument("--steps", type=int, default=2, help="steps of a form in one turn (2)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (5)")
    parser.add_argument("--compile", action="store_true", help="with a form whose networks are torch.compile'd")
    parser.add_argument("--budget", type=float, metavar="S", help="begin nothing new after so many seconds")
    parser.add_argument("--out", type=Path, help="the JSON file (benchmarks/results/performance/steps-DEVICE.json)")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_main, parser, argv)


def _main(arguments: argparse.Namespace) -> int:
    import torch

    from benchmarks.gpu.variants import PHASES, SIZES
    from dusss_core.files import write_json

    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    found = measure(
        torch.device(arguments.device),
        sizes=names_in(arguments.sizes, "--sizes", SIZES),
        phases=names_in(arguments.phases, "--phases", PHASES),
        batches=numbers(arguments.batches, "--batches"),
        threads=numbers(arguments.threads, "--threads"),
        steps=arguments.steps,
        repeats=arguments.repeats,
        compiled=arguments.compile,
        budget_s=arguments.budget,
    )
    target = arguments.out or RESULTS / f"steps-{arguments.device.split(':')[0]}.json"
    taken = stamp()
    write_json(target, {**taken, **found, "machine": {**taken["machine"], **found["machine"]}})
    print(f"written: {target}")
    return cli.OK


def names_in(text: str, name: str, known: Sequence[str]) -> list[str]:
    """The names in `text`.

    Raises:
        UserError: one that is not known.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    for part in names:
        if part not in known:
            raise UserError(f"{name}: '{part}' is not known", f"one or more of: {', '.join(known)}")
    return names


def numbers(text: str, name: str) -> list[int]:
    """The whole numbers above 0 in `text`.

    Raises:
        UserError: something else.
    """
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UserError(f"{name}: {text}: not a list of numbers", "such as 8,32")
    return found


def measure(
    device: Any,
    *,
    sizes: Sequence[str] = ("demo",),
    phases: Sequence[str] = ("pretrain", "segment", "predict"),
    batches: Sequence[int] = (8, 32),
    threads: Sequence[int] = (1, 2),
    steps: int = 2,
    repeats: int = 5,
    compiled: bool = False,
    budget_s: float | None = None,
) -> dict[str, Any]:
    """Time every form of every step.

    Args:
        device: a torch device.
        budget_s: seconds after which nothing new is begun; what is missing then is named under "left_out".

    Returns:
        "machine"; "rows", one for each form, with medians per step (per picture for predict), smallest and largest, and
        how many times faster than eager it is; "busy", on a GPU: the share of time in which it works, for the fastest
        form; "left_out", what the budget was too small for.
    """
    import torch

    from benchmarks.gpu.timing import machine

    began = time.monotonic()
    found: dict[str, Any] = {"machine": machine(device), "rows": [], "busy": [], "left_out": []}
    threads = threads[:1] if device.type == "cuda" else threads
    plan = [(s, p, b, t) for s in sizes for b in batches for p in phases for t in threads]
    before = torch.get_num_threads()
    print(f"{found['machine']}\n{_HEAD}", flush=True)
    try:
        for size, phase, batch, count in plan:
            place = {"size": size, "phase": phase, "batch": batch, "threads": count, "device": device.type}
            if budget_s is not None and time.monotonic() - began > budget_s:
                found["left_out"].append(place)
                continue
            torch.set_num_threads(count)
            rows, busy = _block(place, device, steps, repeats, compiled)
            for row in rows:
                found["rows"].append(row)
                print(_line(row), flush=True)
            if busy is not None:
                found["busy"].append(busy)
                print(f"{size} {phase} {batch}: the GPU is busy for {busy['share']} of the time", flush=True)
    finally:
        torch.set_num_threads(before)
    found["seconds"] = round(time.monotonic() - began, 1)
    return found


def _block(
    place: dict[str, Any], device: Any, steps: int, repeats: int, compiled: bool
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """All forms of one step, in turn."""
    from benchmarks.gpu.timing import busy_share, timed, warmed
    from benchmarks.gpu.variants import PREDICT, variants_of, work_of

    phase, batch = place["phase"], place["batch"]
    variants = variants_of(device, compiled)
    if phase == PREDICT:  # what trains only makes no difference to it
        variants = tuple(variant for variant in variants if variant.name != "fp32")
    n = batch * steps if phase == PREDICT else steps
    # the first convolution of each shape is slow, and cudnn.benchmark tries many
    warm = (3 if device.type == "cuda" else 1) * (batch if phase == PREDICT else 1)
    with tempfile.TemporaryDirectory() as folder:
        works, peak = {}, {}
        for variant in variants:

            def make(variant=variant):
                return work_of(phase, place["size"], batch, variant, device, Path(folder))

            works[variant], peak[variant] = warmed(make, warm, variant, device)
        turns = {variant: [] for variant in variants}
        for _ in range(repeats):
            for variant in variants:
                turns[variant].append([value / n for value in timed(works[variant], n, variant, device)])
        busy = None
        if device.type == "cuda":
            best = min(variants, key=lambda variant: statistics.median(s for s, _ in turns[variant]))
            busy = {**place, "variant": best.name}
            try:
                busy["share"] = round(busy_share(works[best], n * _PROFILED_STEPS // steps, best, device), 4)
            except Exception as error:  # not every driver lets itself be profiled; the times are whole without it
                busy |= {"share": None, "failed": f"{type(error).__name__}: {error}"}
    eager = turns[variants[0]]
    return [
        {**place, "variant": variant.name, **_figures(turns[variant], eager), "peak_memory_bytes": peak[variant]}
        for variant in variants
    ], busy


def _figures(turns: list[list[float]], eager: list[list[float]]) -> dict[str, Any]:
    found = {"turns": len(turns)}
    for name, own, plain in zip(
        ("seconds", "cpu_seconds"), zip(*turns, strict=True), zip(*eager, strict=True), strict=True
    ):
        ratios = [a / max(b, 1e-9) for a, b in zip(plain, own, strict=True)]
        found[name] = float(f"{statistics.median(own):.4g}")
        found[f"{name}_spread"] = [float(f"{min(own):.4g}"), float(f"{max(own):.4g}")]
        found[f"times_faster_{name}"] = round(statistics.median(ratios), 3)
    return found


_HEAD = (
    f"{'size':10}{'phase':10}{'batch':>6}{'threads':>8}  {'form':36}{'s':>10}{'(spread)':>22}{'CPU-s':>10}"
    f"{'faster':>8}{'in CPU':>8}{'MB':>8}"
)


def _line(row: dict[str, Any]) -> str:
    low, high = row["seconds_spread"]
    peak = row["peak_memory_bytes"]
    return (
        f"{row['size']:10}{row['phase']:10}{row['batch']:>6}{row['threads']:>8}  {row['variant']:36}"
        f"{row['seconds']:>10.4g}{f'({low:.3g} to {high:.3g})':>22}{row['cpu_seconds']:>10.4g}"
        f"{row['times_faster_seconds']:>8.2f}{row['times_faster_cpu_seconds']:>8.2f}"
        f"{'' if peak is None else f'{peak / 1e6:.0f}':>8}"
    )


if __name__ == "__main__":
    sys.exit(main())
