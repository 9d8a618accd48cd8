"""Official test pictures on which no cell was ever tested, read once, when everything has been chosen.

Every choice is made on validation pictures. Still, who develops a method sees the test figures of its cells again and
again. These pictures have no part in that.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.grid.cell import Cell
from benchmarks.grid.measures import STUDENT, WITH_SENTENCE, mean, summary
from dusss_core.errors import UserError
from dusss_core.manifest import Record, read_manifest
from server.simulation.materialise import simulation_of
from server.study.config import StudyConfig
from sites.partition import OFFICIAL_TEST, PartitionConfig, partition, write_sites

if TYPE_CHECKING:
    from benchmarks.grid.trial import Trained

SEEDS = (1, 2, 3)
"""Of the cells. A seed draws its own test pictures."""


def unread_records(study: StudyConfig, data: Path) -> list[Record]:
    """The official test's pictures that no cell of SEEDS draws, for the seed of `study` too.

    Raises:
        UserError: the data set has no official test, or all of it is drawn.
    """
    simulation = simulation_of(study)
    config = simulation.partition or PartitionConfig()
    if not config.official_test or config.subset.test is None:
        raise UserError("--unread: the cells are tested on every test picture that the data set has", "leave it out")
    records = read_manifest(data / simulation.data.path)
    drawn: set[str] = set()
    for seed in {*SEEDS, study.seed}:
        drawn |= {record.id for record in partition(records, config, seed)[OFFICIAL_TEST]}
    rest = [record for record in records if record.split == "test" and record.id not in drawn]
    if not rest:
        raise UserError("--unread: every test picture is drawn", "leave it out")
    return rest


def figures_on_unread(cell: Cell, trained: Trained, data: Path, work: Path) -> dict[str, Any]:
    """What the cell's JSON file holds under "unread"."""
    import numpy as np

    from benchmarks.grid.trial import figures_on

    records = unread_records(trained.study, data)
    files = write_sites(work / f"unread-{cell.dataset}-{cell.profile}", {OFFICIAL_TEST: records})
    found = figures_on("test", trained, files)[OFFICIAL_TEST]
    dice = found[STUDENT]["dice"]
    return {
        **summary([found[STUDENT]]),
        "n": len(dice),
        "with_sentence": mean(found[WITH_SENTENCE]["dice"]) if WITH_SENTENCE in found else None,
        "dice_per_picture": [int(value) for value in np.rint(1000 * dice)],
    }
