"""The tables of docs/performance.md, each from the JSON of one benchmark."""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

from benchmarks import hierarchy
from benchmarks.federation import figures_of
from benchmarks.pages import as_head, as_row

NOT_YET = "Not measured yet.\n"
_HUNDRED_THOUSAND = 100_000
_SIDES = ("ours", "against")

Document = dict[str, Any]


def bodies(documents: dict[str, Document]) -> dict[str, str]:
    """Name of each section -> its text.

    Args:
        documents: stem of the JSON file -> what is in it.
    """
    steps = [documents[name] for name in ("steps-cpu", "steps-cuda") if name in documents]
    deployed = {
        model: documents[f"deployed-{model}"] for model in ("small", "paper") if f"deployed-{model}" in documents
    }
    federation = documents.get("federation")
    return {
        "steps": _steps(steps) if steps else NOT_YET,
        "federation": _federation(federation) if federation else NOT_YET,
        "shares": _shares(federation) if federation else NOT_YET,
        "nvflare": _nvflare(documents["nvflare"]) if "nvflare" in documents else NOT_YET,
        "deployed": _deployed(deployed) if deployed else NOT_YET,
        "compression": _compression(documents["compression"]) if "compression" in documents else NOT_YET,
        "ray": _ray(documents["ray"]) if "ray" in documents else NOT_YET,
        "hierarchy": _hierarchy(federation, deployed) if federation and len(deployed) == 2 else NOT_YET,
    }


def _steps(documents: list[Document]) -> str:
    lines = []
    for document in documents:
        machine = document["machine"]
        told = ", ".join(f"{key} {value}" for key, value in machine.items()) if isinstance(machine, dict) else machine
        head = ["size", "phase", "batch", "threads", "form", "s", "CPU-s", "times faster", "in CPU-s", "peak MB"]
        lines += [f"{told}.", "", *as_head(head)]
        for row in document["rows"]:
            peak = row["peak_memory_bytes"]
            values = [row["size"], row["phase"], row["batch"], row["threads"], row["variant"]]
            values += [f"{row['seconds']:.3g}", f"{row['cpu_seconds']:.3g}"]
            values += [f"{row['times_faster_seconds']:.2f}", f"{row['times_faster_cpu_seconds']:.2f}"]
            lines.append(as_row([*values, "" if peak is None else f"{peak / 1e6:.0f}"]))
        lines += [f"\nThe GPU works {100 * busy['share']:.0f} % of the time: {busy['size']} {busy['phase']}, batch "
                  f"{busy['batch']}, {busy['variant']}." for busy in document["busy"]]  # fmt: skip
        lines.append("")
    return "\n".join(lines)


def _federation(document: Document) -> str:
    older = document["against"] is not None
    head = ["model", "sites", "s", "CPU-s", "MB down", "MB up", "peak MB, all", "peak MB, coordinator"]
    lines = [_when(document), "", *as_head(head)]
    for cell in document["cells"]:
        ours, theirs = (figures_of(cell[side]) if side in cell else None for side in _SIDES)
        told = [_compared(value, None if theirs is None else theirs[i]) for i, value in enumerate(ours)]
        lines.append(as_row([cell["model"], f"{cell['sites']:,}", *told]))
    if older:
        lines += ["", f"In brackets: {document['against']}, measured in turns with it."]
    return "\n".join([*lines, ""])


def _shares(document: Document) -> str:
    cell = next((c for c in document["cells"] if (c["model"], c["sites"]) == ("paper", 3)), document["cells"][-1])
    sides = [side for side in _SIDES if side in cell]
    names = {name for side in sides for name in cell[side]["shares_cpu_s"]} - {"site: training"}
    head = ["share", *(document["commit"] if side == "ours" else document["against"] for side in sides)]
    lines = [f"CPU-seconds of a round, {cell['model']}, {cell['sites']} sites together.", "", *as_head(head)]
    for name in sorted(names, key=lambda one: (-round(cell["ours"]["shares_cpu_s"].get(one, 0.0), 3), one)):
        values = [cell[side]["shares_cpu_s"].get(name, 0.0) for side in sides]
        if max(values) >= 0.001:
            lines.append(as_row([name, *(f"{value:.3f}" for value in values)]))
    return "\n".join([*lines, ""])


def _nvflare(document: Document) -> str:
    named = {
        "ours": f"this project, {document['commit']}",
        "against": f"this project, {document['against']}",
        "nvflare numpy": f"NVFlare {document['nvflare']}, one NumPy array",
        "nvflare torch": f"NVFlare {document['nvflare']}, a network of PyTorch",
    }
    lines = [_when(document), "", *as_head(["", "CPU-s", "s", "CPU-s of each run"])]
    for who, runs in document["runs"].items():
        cpu, wall = ([run[kind] for run in runs] for kind in ("cpu_s", "wall_s"))
        each = ", ".join(f"{value:.1f}" for value in cpu)
        lines.append(as_row([named[who], f"{median(cpu):.1f}", f"{median(wall):.1f}", each]))
    return "\n".join([*lines, ""])


def _deployed(documents: dict[str, Document]) -> str:
    first = next(iter(documents.values()))
    lines = [_when(first), ""]
    named = ["model", "hospitals", "s of a round beyond the slowest site, median", "of each round", "target"]
    lines += as_head([*named, f"{first['against']}, before and after"] if first["older"] else named)
    for model, document in documents.items():
        each = ", ".join(f"{value:.1f}" for value in document["beyond_slowest_site_s"])
        values = [model, document["sites"], f"{document['median_s']:.1f}", each, f"{document['target_s']:g}"]
        older = ", ".join(f"{one['median_s']:.1f}" for one in document["older"])
        lines.append(as_row([*values, older] if first["older"] else values))
    lines += ["", *as_head(["process", *(f"{model}: CPU-s, peak MB" for model in documents)])]
    for name in sorted({name for document in documents.values() for name in document["processes"]}):
        lines.append(as_row([name, *(_process(document, name) for document in documents.values())]))
    return "\n".join([*lines, ""])


def _process(document: Document, name: str) -> str:
    """CPU-seconds and peak memory of a process, of the older checkout in brackets, the mean of its two runs."""
    one = document["processes"].get(name)
    if one is None:
        return ""
    # the older benchmark started Flower's own command
    names = (name, "flower-superlink" if name == "server.deployment.superlink" else name)
    older = [next((run["processes"][n] for n in names if n in run["processes"]), None) for run in document["older"]]
    known = [run for run in older if run]
    cpu, peak = ([run[kind] for run in known] for kind in ("cpu_s", "peak_mb"))
    if not known:
        return f"{one['cpu_s']:.1f}, {one['peak_mb']:.0f}"
    return f"{one['cpu_s']:.1f} ({fmean(cpu):.1f}), {one['peak_mb']:.0f} ({fmean(peak):.0f})"


def _compression(document: Document) -> str:
    head = ["phase", "wire", "bytes", "of float32", "encode CPU-s", "decode CPU-s", "kept at the site CPU-s"]
    lines = [_when(document), "", *as_head(head)]
    for row in document["rows"]:
        seconds = (f"{row[name]:.3f}" for name in ("encode_s", "decode_s", "kept_s"))
        lines.append(as_row([row["phase"], row["wire"], f"{row['bytes']:,}", f"{100 * row['share']:.1f} %", *seconds]))
    return "\n".join([*lines, ""])


def _ray(document: Document) -> str:
    rounds = ", ".join(f"{seconds:.0f}" for seconds in document["round_s"])
    named = ["sites", "nodes", "answers in each round", "s of each round", "s, all", "site workers at once"]
    values = [document["sites"], document["nodes"], document["answered"], rounds, f"{document['whole_s']:.0f}"]
    lines = [_when(document), "", *as_head(named), as_row([*values, document["site_workers"]])]
    lines += ["", *as_head(["process", "peak MB"])]
    lines += [as_row([name, f"{peak:,.0f}"]) for name, peak in sorted(document["peak_mb"].items())]
    return "\n".join([*lines, ""])


def _hierarchy(federation: Document, deployed: dict[str, Document]) -> str:
    lines = []
    for model in ("small", "paper"):
        constants = hierarchy.constants_of(federation, deployed, model)
        lines += [
            f"{model}: {constants.seconds:.2f} CPU-s and {constants.megabytes:.2f} MB an answer.",
            "",
            *as_head(["fan-out", "levels", "relays", "model at the last site after, s", "after the slowest site, s"]),
        ]
        for one in hierarchy.rows(_HUNDRED_THOUSAND, constants):
            name = "no relay" if one.levels == 1 else f"{one.fan_out:,}"
            lines.append(as_row([name, one.levels, f"{one.relays:,}", f"{one.down_s:,.0f}", f"{one.up_s:,.0f}"]))
        lines.append("")
    return "\n".join(lines)


def _compared(value: float | None, older: float | None) -> str:
    if value is None:
        return ""
    return _told(value) if older is None else f"{_told(value)} ({_told(older)})"


def _told(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _when(document: Document) -> str:
    machine = document["machine"]
    return f"{document['date']}, {document['commit']}, {machine['cores']} cores of {machine['processor']}."
