"""The settings: which sites there are, with how many labels and sentences, and who trains with whom.

centralized    the same training and validation pictures as in `federated`, in one place
local          each site by itself
federated      the data set's natural sites
iid            as many sites, drawn at random
skewed         the first site has all its labels, the others a tenth of `--labels`
no_labels      the first site has no labels at all
no_text        the first site has no sentences
absent         the first site takes no part: what the other sites reach without it
left_out_NAME  the federation of the other hospitals; all pictures of this one are the test (polypgen)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.grid.cell import Cell
from benchmarks.grid.sentences import tell
from dusss_core.errors import UserError
from dusss_core.manifest import Record, read_manifest, write_manifest
from server.simulation.materialise import materialise, simulation_of
from server.study.config import StudyConfig
from sites.config import write_site
from sites.partition import OFFICIAL_TEST, PartitionConfig, partition

SETTINGS = ("centralized", "local", "federated", "iid", "skewed", "no_labels", "no_text", "absent")


class Group(NamedTuple):
    """Who trains together, and where what comes out is tested."""

    sites: list[Path]
    """Site files of the federation; the site `official_test`, where there is one, only evaluates."""
    tested: list[Path]
    """Sites whose validation and test pictures it is measured on: the same in every setting."""

    @property
    def names(self) -> set[str]:
        """Of the sites that are measured."""
        return {file.parent.name for file in self.tested}


def groups_of_sites(cell: Cell, study: StudyConfig, folder: Path) -> dict[str, Group]:
    """Write the cell's sites under `folder`.

    Returns:
        The federations to train, by name. One federation, but for `local`, where each site is one.
    """
    files = materialise(study, folder)
    if cell.control:
        tell(files, cell.control, cell.seed)
    test = [file for file in files if file.parent.name == OFFICIAL_TEST]
    sites = [file for file in files if file not in test]
    if cell.setting == "local":
        return {file.parent.name: Group([file, *test], [file, *test]) for file in sites}
    if cell.setting == "centralized":
        pooled = _pooled(folder / "sites" / "centralized", sites)
        return {"centralized": Group([pooled, *test], [*sites, *test])}
    if cell.setting == "no_text":
        without_sentences(sites[0])
    if cell.setting == "absent":
        sites = sites[1:]
    return {cell.setting: Group([*sites, *test], [*sites, *test])}


def partition_of(cell: Cell) -> dict[str, Any]:
    """`simulation.partition` of the cell.

    Raises:
        UserError: an unknown setting.
    """
    source = cell.source()
    left_out = {f"left_out_{value}": value for value in source.get("left_out", ())}
    known = (*SETTINGS, *left_out)
    if cell.setting not in known:
        raise UserError(f"--setting {cell.setting}: not known", f"one of: {', '.join(known)}")
    natural = source["sites"]
    drawn = {"by": "random", "sites": len(natural)} if cell.setting == "iid" else source["federated"]
    shares = {
        "skewed": dict.fromkeys(natural[1:], cell.labels / 10),
        "no_labels": dict.fromkeys(natural, cell.labels) | {natural[0]: 0.0},
    }
    return {
        **drawn,
        "hold_out": source["hold_out"][cell.profile],
        "subset": source["subset"][cell.profile],
        "official_test": source["official_test"],
        "keep_splits": source["keep_splits"],
        "label_fraction": shares.get(cell.setting, cell.labels),
        "labels_of": source.get("labels_of", "site") if cell.setting not in shares else "site",
        "left_out": left_out.get(cell.setting),
    }


def tested_when_in(study: StudyConfig, data: Path) -> dict[str, set[str]]:
    """By site: ids of the records that it tests on where no hospital is left out."""
    simulation = simulation_of(study)
    everybody = (simulation.partition or PartitionConfig()).model_copy(update={"left_out": None})
    sites = partition(read_manifest(data / simulation.data.path), everybody, study.seed)
    return {name: {record.id for record in members if record.split == "test"} for name, members in sites.items()}


def same_test_for_all_seeds(cell: Cell) -> bool:
    """Whether cells that differ in their seed alone are tested on the same pictures, in the same order."""
    drawn = partition_of(cell)
    return (
        drawn["by"] == "column"
        and drawn["keep_splits"]
        and not (drawn["subset"].get("test") or drawn["hold_out"].get("test"))
    )


def _pooled(folder: Path, sites: Sequence[Path]) -> Path:
    """One site with all pictures of `sites`."""
    records: list[Record] = []
    for file in sites:
        own = read_manifest(file.parent / "manifest.csv")
        records += [replace(record, id=f"{file.parent.name}-{record.id}") for record in own]
    write_manifest(folder / "manifest.csv", records)
    return write_site(folder, folder.name, simulated=True)


def without_sentences(site_file: Path) -> None:
    """Take them out of the site's manifest."""
    manifest = site_file.parent / "manifest.csv"
    write_manifest(manifest, [replace(record, text="", more_texts=()) for record in read_manifest(manifest)])
