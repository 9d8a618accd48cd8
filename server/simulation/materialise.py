"""Writes the simulated sites to disk: a folder each, with manifest and site file, as a real hospital would have them.

OUT/sites/index.json          which sites there are
OUT/sites/NAME/site.yaml      the site's file
OUT/sites/NAME/manifest.csv   its data
OUT/sites/NAME/state/         its private state
OUT/sites/peers.txt, OUT/sites/NAME/site.key    with secure aggregation: keys that the sites have pinned
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml

from client.secure.keys import make_key
from client.secure.part import FOLDER
from dusss_core.errors import UserError
from dusss_core.files import write_json, write_text
from dusss_core.manifest import Record, labelled_by_fraction, read_manifest, write_manifest
from server.simulation.privacy import give_budget, has_budget
from server.study.config import StudyConfig
from server.study.simulation import SimulationConfig, SourceConfig
from sites.config import load_site, write_site
from sites.dataset import as_allowed
from sites.importers import ImportOptions, import_lvit, lvit_sources
from sites.partition import PartitionConfig, partition, write_sites
from sites.synth.hospitals import write_hospitals

_MANY = 1000
"""Passes that a simulated site allows in a round where its study's steps shall not be cut short."""


def materialise(study: StudyConfig, out: Path, *, keep: bool = False, spread: bool = True) -> list[Path]:
    """Write the study's simulated sites under `out`/sites; nothing is done if they are there already.

    Sites with a privacy budget are written anew for each fresh run: a ledger never forgets, as a hospital's, and a new
    simulation is about new patients.

    Args:
        keep: take the sites that are there, even if the data they were made from have moved: a run that is resumed
            needs the state that they hold. Of a finished run whose sites were deleted they are made anew.
        spread: give each site a GPU of its own, in turn, where there are several; False: Ray does that.

    Returns:
        The site files, in order of site name.

    Raises:
        UserError: the study has no `simulation` part, or its data are missing or damaged; or the sites that are to be
            kept are not told by their index.
    """
    simulation = simulation_of(study)
    root = Path(study.data.root).expanduser().absolute()
    seed = study.seed if simulation.seed is None else simulation.seed
    folder = Path(out).absolute() / "sites"
    encoder = study.vlm.text.encoder if study.vlm.text.encoder != "minilm" else None
    settings = {"text_encoder": encoder, "simulated": True}
    if study.personal.kind == "finetune" and study.personal.labels_too:
        # twice the steps: a hospital's default would cut them short at a site of few pictures, and nobody waits there
        settings["max_epochs"] = _MANY
    devices = _devices(simulation, spread)
    secure = study.federation.secure_aggregation
    digest = _digest(simulation, root, seed, settings, secure, devices)
    index = _read_index(folder)
    if keep and not index:
        _check_expendable(folder)
    if not index or (not keep and (index.get("digest") != digest or has_budget(simulation))):
        shutil.rmtree(folder, ignore_errors=True)
        files = _write(folder, simulation, root, seed, settings)
        _place(sorted(files), devices)
        if secure:
            _pin_keys(folder, files)
        relative = sorted(file.relative_to(folder).as_posix() for file in files)
        write_json(folder / "index.json", {"digest": digest, "site_files": relative})
        index = _read_index(folder)
    return [folder / file for file in index["site_files"]]


def forget_sums(files: Iterable[Path]) -> None:
    """Let simulated sites forget which secure sums they took part in, for a run that begins anew with the same seed."""
    for file in files:
        shutil.rmtree(file.parent / "state" / FOLDER, ignore_errors=True)


def simulation_of(study: StudyConfig) -> SimulationConfig:
    """The `simulation` part of a study.

    Raises:
        UserError: there is none.
    """
    if study.simulation is None:
        raise UserError(
            f"study '{study.study}': has no 'simulation' part",
            "add simulation.data, which says where the simulated sites' data come from",
        )
    return study.simulation


def _write(folder: Path, simulation: SimulationConfig, root: Path, seed: int, settings: dict[str, Any]) -> list[Path]:
    source = simulation.data
    if source.kind == "synth":
        manifests = write_hospitals(folder, source.synth, seed)
        files = [write_site(manifest.parent, manifest.parent.name, **settings) for manifest in manifests]
    elif source.kind == "sites":
        found = _site_files(root / source.path)
        if simulation.privacy is None:
            _check_no_budget(found)
        files = [_copied(file, folder, settings) for file in found]
    else:
        divided = simulation.partition or PartitionConfig()
        records = _records(source, root, folder, divided.keep_splits)
        files = write_sites(folder, partition(records, divided, seed), **settings)
    if simulation.privacy is not None:
        for file in files:
            give_budget(file, simulation.privacy)
    return files


def _devices(simulation: SimulationConfig, spread: bool) -> list[str]:
    """What the sites are spread over."""
    device = simulation.device
    if isinstance(device, list):
        if not spread:
            raise UserError(
                "simulation.device: a list of devices does not go with --engine ray, which hands out GPUs itself",
                "set it to auto, or leave --engine out",
            )
        return device
    if device != "auto" or not spread:
        return [device]
    import torch

    count = torch.cuda.device_count()
    return [f"cuda:{number}" for number in range(count)] if count > 1 else ["auto"]


def _place(files: Sequence[Path], devices: Sequence[str]) -> None:
    """Give each site one of the devices, in turn."""
    for file, device in zip(files, cycle(devices), strict=False):
        if device != "auto":
            write_text(file, file.read_text(encoding="utf-8") + yaml.safe_dump({"device": device}))


def _pin_keys(folder: Path, files: Sequence[Path]) -> None:
    """Give each site a key and the public keys of all, as hospitals would exchange them."""
    names = {file: file.parent.name for file in files}
    public = {name: make_key(file.parent / "site.key", name) for file, name in names.items()}
    write_text(folder / "peers.txt", "".join(f"{name} {line}\n" for name, line in sorted(public.items())))
    # these hospitals also train in other ways, for comparison, and leave the threshold to the study
    settings = {"key": "site.key", "peers": "../peers.txt", "required": False, "threshold": 2}
    for file in files:
        text = file.read_text(encoding="utf-8") + yaml.safe_dump({"secure_aggregation": settings}, sort_keys=False)
        write_text(file, text)


def _site_files(folder: Path) -> list[Path]:
    """The files of the sites that a folder holds, by name.

    Raises:
        UserError: there is none, or two have one name.
    """
    files = sorted(folder.glob("*/site.yaml"))
    if not files:
        raise UserError(
            f"{folder}: no site in it, such as NAME/site.yaml",
            "`python -m sites partition` writes such a folder; name it with simulation.data.path",
        )
    named: dict[str, Path] = {}
    for file in files:
        if (other := named.setdefault(load_site(file).site, file)) is not file:
            raise UserError(
                f"{file}: its site has the name of that in {other}", "give each site of the folder a name of its own"
            )
    return files


def _check_no_budget(files: Sequence[Path]) -> None:
    """Refuse sites with a budget of their own, which is not simulated: nobody should take the figures for private.

    Raises:
        UserError: a site has one.
    """
    if with_one := [str(file) for file in files if load_site(file).privacy.epsilon is not None]:
        raise UserError(
            f"{', '.join(with_one)}: trains with differential privacy, and a simulation spends no site's own budget",
            "give the simulated sites one with --set simulation.privacy.epsilon=8, or with =null none",
        )


def _copied(file: Path, folder: Path, settings: dict[str, Any]) -> Path:
    """A simulated site with the data of the site `file`, as far as that lets them be used. Its own file and its private
    state are not touched."""
    site = load_site(file)
    records = [record for record in read_manifest(site.data.manifest) if record.split in site.limits.splits]
    chosen = labelled_by_fraction(records, site.data.label_fraction)
    allowed = [as_allowed(record, site.limits) for record in records]
    kept = [r if r.split != "train" else replace(r, labelled=r.labelled and r.id in chosen) for r in allowed]
    write_manifest(folder / site.site / "manifest.csv", kept)
    evaluates_only = not site.limits.phases or all(record.split == "test" for record in kept)
    return write_site(folder / site.site, site.site, evaluates_only=evaluates_only, **settings)


def _records(source: SourceConfig, root: Path, folder: Path, splits_kept: bool) -> list[Record]:
    path = root / source.path
    if not path.exists():
        raise UserError(f"{path}: the data are not there", "name their folder with --set data.root=FOLDER")
    if source.kind == "lvit":
        folder.mkdir(parents=True, exist_ok=True)
        columns = root / source.columns if source.columns else None
        options = ImportOptions(
            folder / "all.csv", columns, source.key, extract=source.extract, force=True, splits_kept=splits_kept
        )
        return import_lvit(path, options).records
    records = read_manifest(path)
    if source.text_column is None:
        return records
    return [replace(record, text=_cell(record, source.text_column, path), more_texts=()) for record in records]


def _cell(record: Record, column: str, path: Path) -> str:
    if column not in record.extra:
        raise UserError(
            f"{path}: no column '{column}' (simulation.data.text_column)",
            f"its further columns: {', '.join(record.extra) or 'none'}",
        )
    return record.extra[column]


def _digest(
    simulation: SimulationConfig,
    root: Path,
    seed: int,
    settings: dict[str, Any],
    secure: bool,
    devices: Sequence[str],
) -> str:
    """Names all that the sites depend on."""
    source = simulation.data
    stamps = []
    paths = [source.path, source.columns]
    if source.kind == "sites":
        files = _site_files(root / source.path)
        paths += [*files, *(load_site(file).data.manifest for file in files)]
    elif source.kind == "lvit":
        paths += lvit_sources(root / source.path)
    for path in paths:
        if path is not None and (root / path).exists():
            status = (root / path).stat()
            stamps.append([str(root / path), status.st_mtime_ns, status.st_size])
    # sites without any are those of releases that knew of no budgets
    without = {"threads", "workers", "seed"} | ({"privacy"} if simulation.privacy is None else set())
    values = simulation.model_dump(mode="json", exclude=without)
    named = [values, seed, stamps, settings["text_encoder"], *(["secure"] if secure else [])]
    named += [settings["max_epochs"]] if "max_epochs" in settings else []
    named += [devices] if len(devices) > 1 else []
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def _read_index(folder: Path) -> dict[str, Any]:
    """What index.json holds; empty if it is not there, or damaged."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        files = index["site_files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return index if isinstance(files, list) and files and all(isinstance(file, str) for file in files) else {}


def _check_expendable(folder: Path) -> None:
    """Sites of a run that goes on hold its private state and its ledgers: they are not made anew in silence.

    Raises:
        UserError: they are there, or the run needs them.
    """
    if not folder.exists() and (folder.parent / "summary.json").is_file():
        return
    raise UserError(
        f"{folder / 'index.json'}: not there, or damaged: without it the sites of this run, and their private state, "
        "are not found",
        "put it back from a backup; or start afresh with --force or another --out",
    )
