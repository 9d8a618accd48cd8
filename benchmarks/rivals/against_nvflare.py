"""A whole run of a federation that does not train, ours and NVFlare's: processor time and seconds, side by side.

    python -m venv FOLDER && FOLDER/bin/pip install nvflare torch
    python -m benchmarks.rivals.against_nvflare --nvflare FOLDER/bin/python        3 sites, 4 rounds, 59 MB
    python -m benchmarks.rivals.against_nvflare --nvflare FOLDER/bin/python --against WORKTREE

Each run is a command of its own, in turns, `--repeats` of each; all of it counts: start, rounds, end, and all
processes that it starts. Ours is `benchmarks/probes/federation_probe.py`: door, private state on the disk (optimiser
and teacher, three times the model), audit log, checkpoints, validation and a last test of pictures. NVFlare's simulator
has a process for each site and keeps no state of a site; its model is the array or network of `nvflare_noop.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks import federation, measured
from feddusss import cli

FRAMEWORKS = ("numpy", "torch")


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvflare", type=Path, required=True, help="an interpreter that has NVFlare, and torch")
    parser.add_argument("--model", choices=sorted(federation.WIDTH), default="paper", help="the student (paper)")
    parser.add_argument("--sites", type=int, default=3, help="sites (3)")
    parser.add_argument("--rounds", type=int, default=4, help="rounds (4)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, in turns (3)")
    parser.add_argument("--against", type=Path, help="also another checkout of this project")
    parser.add_argument("--json", type=Path, help="keep what was measured in this file")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_measure, parser, argv)


def _measure(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as name:
        runs = _runs(arguments, Path(name))
    document = {
        "what": "nvflare",
        **measured.stamp(arguments.against),
        "nvflare": _release(arguments.nvflare),
        "model": arguments.model,
        "sites": arguments.sites,
        "rounds": arguments.rounds,
        "runs": runs,
    }
    for who, values in runs.items():
        told = {kind: median(run[kind] for run in values) for kind in ("cpu_s", "wall_s")}
        each = ", ".join(f"{run['cpu_s']:.1f}" for run in values)
        print(f"{who:<16}{told['cpu_s']:>7.1f} CPU-s ({each}){told['wall_s']:>7.1f} s")
    if arguments.json:
        measured.write(arguments.json, document)
    return cli.OK


def _runs(arguments: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    shapes = folder / "shapes.json"
    shapes.write_text(json.dumps(_shapes(federation.WIDTH[arguments.model])))
    data = federation.data(folder)
    checkouts = {"ours": measured.HERE}
    if arguments.against is not None:
        checkouts["against"] = arguments.against.resolve()
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(arguments.repeats):
        for who, checkout in checkouts.items():
            settings = {"sites": arguments.sites, "rounds": arguments.rounds, "model": arguments.model}
            done = federation.probe(checkout, settings, folder, data)
            told = {
                "cpu_s": done["process_cpu_s"],
                "wall_s": done["process_wall_s"],
                "study_cpu_s": done["study_cpu_s"],
            }
            runs.setdefault(who, []).append(told)
        for framework in FRAMEWORKS:
            done = _nvflare(arguments, framework, shapes, folder)
            runs.setdefault(f"nvflare {framework}", []).append({"cpu_s": done.cpu_s, "wall_s": done.wall_s})
    return runs


def _nvflare(arguments: argparse.Namespace, framework: str, shapes: Path, folder: Path) -> measured.Done:
    script = Path(__file__).parent / "nvflare_noop.py"
    with tempfile.TemporaryDirectory(dir=folder) as own:
        command = [str(arguments.nvflare.absolute()), str(script), "--model", framework, "--shapes", str(shapes)]
        command += ["--sites", str(arguments.sites), "--rounds", str(arguments.rounds), "--folder", own]
        return measured.run(command, Path(own))


def _shapes(width: int) -> dict[str, list[int]]:
    """The tensors of the student that travel, by name."""
    from dusss_core.phases import Phase
    from dusss_core.training import initial_shared
    from server.study.config import StudyConfig

    study = StudyConfig.model_validate({"study": "shapes", "student": {"width": width}})
    return {name: list(tensor.shape) for name, tensor in initial_shared(study, Phase.SEGMENT).items()}


def _release(interpreter: Path) -> str:
    code = "from importlib.metadata import version; print(version('nvflare'))"
    return subprocess.run([str(interpreter), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
