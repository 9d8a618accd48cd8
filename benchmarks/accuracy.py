"""Measures one cell of the accuracy grid, and writes it as one small JSON file.

    python benchmarks/accuracy.py --data DIR --dataset qata --labels 0.05 --method dusss --setting federated --seed 1

With --unread it tests a cell that was measured, and of which --work still has the run, once more, on official test
pictures that no cell draws.

It stops cleanly where the next round would pass --time-limit, and goes on at the next call with the same arguments.
`python benchmarks/tables.py` makes docs/results.md's tables of accuracy from these files alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.grid.cell import DATASETS, OWN_TEXT, PROFILES, Cell
from benchmarks.grid.measures import (
    PERSONAL,
    STUDENT,
    TEXT_MASK,
    WITH_SENTENCE,
    Figures,
    area_by_size,
    mean,
    only,
    summary,
)
from dusss_core.errors import UserError
from feddusss import cli

if TYPE_CHECKING:
    from benchmarks.grid.trial import Clock
    from server.study.config import StudyConfig

RESULTS = Path(__file__).parent / "results"
BySite = Mapping[str, list[Mapping[str, Figures]]]
"""By site: of each federation that was tested there, the figures of `figures_on`."""


def main(argv: list[str] | None = None) -> int:
    """Train and test one cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--dataset", required=True, help=", ".join(DATASETS))
    parser.add_argument("--labels", type=float, default=0.5, help="share of the training masks (0.5)")
    parser.add_argument("--method", required=True, help="dusss, paper, supervised, wrong_sentence, table2_110, ...")
    parser.add_argument("--setting", default="centralized", help="centralized, local, federated, iid, skewed, ...")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text", default=OWN_TEXT, metavar="COLUMN", help="column of the sentences (text)")
    parser.add_argument(
        "--profile", choices=PROFILES, default="cpu", help="cpu (also cpu_imagenet, full): for two cores"
    )
    parser.add_argument("--time-limit", type=float, metavar="MIN", help="stop after so many minutes; call again")
    parser.add_argument("--work", type=Path, default=Path("runs/accuracy"), help="folder for runs (runs/accuracy)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON file")
    parser.add_argument("--unread", action="store_true", help="test on pictures that no cell draws, once, at the end")
    cli.add_common_arguments(parser)
    return cli.run(_measure, parser, argv)


def _measure(arguments: argparse.Namespace) -> int:
    from benchmarks.grid.methods import find_method
    from benchmarks.grid.trial import Clock, OutOfTime
    from dusss_core.files import write_json

    cell = Cell(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Cell)})
    find_method(cell.method)
    target = arguments.results / f"{cell.name}.json"
    if arguments.unread:
        return _measure_unread(cell, target, arguments)
    if target.is_file():
        print(f"measured already: {target}")
        return cli.OK
    clock = Clock(None if arguments.time_limit is None else 60 * arguments.time_limit)
    try:
        result = measure(cell, arguments.data, arguments.work.absolute(), clock, tuple(arguments.overrides))
    except OutOfTime:
        print("the time limit is reached; the same command goes on from here")
        return cli.OK
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_json(target, result)
    print(f"written: {target}")
    return cli.OK


def _measure_unread(cell: Cell, target: Path, arguments: argparse.Namespace) -> int:
    from benchmarks.grid.hospitals import groups_of_sites
    from benchmarks.grid.methods import find_method
    from benchmarks.grid.trial import Clock, Trial, make_study
    from benchmarks.grid.unread import figures_on_unread
    from dusss_core.files import write_json

    if not target.is_file():
        raise UserError(f"{target}: the cell is not measured yet", "measure it first, without --unread")
    result = json.loads(target.read_text(encoding="utf-8"))
    if "unread" in result:
        print(f"read already: {target}")
        return cli.OK
    work, data, overrides = arguments.work.absolute(), arguments.data, tuple(arguments.overrides)
    groups = groups_of_sites(cell, make_study(cell, data, overrides), work / cell.hospitals)
    if len(groups) > 1:
        raise UserError("--unread: several models in this setting", "choose a setting with one")
    ((name, group),) = groups.items()
    folder = work / cell.name / name
    if not (folder / "summary.json").is_file():
        raise UserError(f"{folder}: no finished run of the cell", "name its folder with --work")
    trained = find_method(cell.method)(Trial(cell, folder, group.sites, data, Clock(None), overrides))
    result["unread"] = figures_on_unread(cell, trained, data, work)
    write_json(target, result)
    print(f"written: {target}")
    return cli.OK


def measure(cell: Cell, data: Path, work: Path, clock: Clock, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Train the cell's federations and read their test pictures.

    Returns:
        What the cell's JSON file holds.
    """
    from benchmarks.grid.hospitals import groups_of_sites, same_test_for_all_seeds
    from benchmarks.grid.methods import find_method
    from benchmarks.grid.trial import Trial, figures_on, make_study, provenance

    groups = groups_of_sites(cell, make_study(cell, data, overrides), work / cell.hospitals)
    val, test, trained, alone = defaultdict(list), defaultdict(list), [], {}
    for name, group in groups.items():
        trial = Trial(cell, work / cell.name / name, group.sites, data, clock, overrides)
        trained.append(find_method(cell.method)(trial))
        clock.check()
        for found, split in ((val, "val"), (test, "test")):
            for site, figures in figures_on(split, trained[-1], group.tested).items():
                found[site].append(figures)
        read = [test[site][-1][STUDENT]["dice"] for site in _counting(test) if site in group.names]
        alone[name] = mean([value for dice in read for value in dice])
    return {
        **dataclasses.asdict(cell),
        "val": {
            **_val_figures(val),
            # of the models and in the weights by which the final round was chosen
            **{name: mean([some.val.get(name) for some in trained]) for name in ("dice", "iou")},
            # of a student that is given sentences: with them
            **{
                name: mean([some.val.get(name) for some in trained])
                for name in ("text_dice", "text_iou")
                if name in trained[0].val
            },
        },
        **({"same_pictures": True} if same_test_for_all_seeds(cell) else {}),
        **_test_figures(test, mean([some.hidden_text_dice for some in trained])),
        **_personal_figures(trained[0].study.personal.kind, val, test),
        **_left_out_figures(trained[0].study, data, test),
        # test Dice of each model, where there are several
        **({"federations": alone} if len(alone) > 1 else {}),
        "config": trained[0].study.model_dump(mode="json", exclude={"data", "deployment"}),
        **provenance(),
        "seconds": round(sum(some.seconds for some in trained), 1),
    }


def _val_figures(pictures: BySite) -> dict[str, Any]:
    student, *told = (_of(pictures, pictures, kind) for kind in (STUDENT, TEXT_MASK, WITH_SENTENCE))
    found = {**summary(student), "n": sum(len(pictures[site][0][STUDENT]["dice"]) for site in pictures)}
    names = (TEXT_MASK, WITH_SENTENCE)
    return found | {kind: summary(some) for kind, some in zip(names, told, strict=True) if some}


def _test_figures(pictures: BySite, hidden_text_dice: float | None) -> dict[str, Any]:
    """Of the official test where there is one, else of all sites' own."""
    tested, names = _counting(pictures), ("dice", "iou", "hd95")
    student, text, merged = (_of(pictures, tested, kind) for kind in (STUDENT, TEXT_MASK, WITH_SENTENCE))
    of_text, single = summary(text), _thousandths(pictures, tested, STUDENT)
    told = {}
    if merged and not text:  # of a student that is given sentences: with them
        told["text_dice"] = summary(merged)["dice"]
    return {
        "test": {**summary(student, names), **told, "n": len(single), "area_by_size": area_by_size(student)},
        "text_mask": {
            "dice": hidden_text_dice,
            "test_dice": of_text.pop("dice"),
            **of_text,
            "area_by_size": area_by_size(text),
        },
        "with_sentence": {**summary(merged), "area_by_size": area_by_size(merged)},
        "sites": {site: summary(_of(pictures, [site], STUDENT), names) for site in pictures},
        "test_dice_per_picture": single,
        **({"test_text_dice_per_picture": _thousandths(pictures, tested, WITH_SENTENCE)} if told else {}),
    }


def _thousandths(pictures: BySite, tested: Iterable[str], kind: str) -> list[int]:
    """Dice of each picture, in thousandths."""
    import numpy as np

    # the federations of a site are tested on the same pictures, so a picture is one figure in a paired test
    single = [np.mean([some[kind]["dice"] for some in pictures[site]], axis=0) for site in tested]
    return [int(value) for value in np.rint(1000 * np.concatenate(single))]


def _personal_figures(kind: str, val: BySite, test: BySite) -> dict[str, Any]:
    """Of the students that are the sites' own, and of the shared one at the same sites: means over sites, each site
    counting the same, and the worst site."""
    sites = [site for site in sorted(test) if _of(test, [site], PERSONAL)]
    if kind == "none":
        return {}
    own, shared = ({site: summary(_of(test, [site], whose)) for site in sites} for whose in (PERSONAL, STUDENT))
    chosen = [summary(_of(val, [site], PERSONAL))["dice"] for site in sites if site in val]
    return {
        "personal": {
            "kind": kind,
            **_over_sites(own),
            "val_dice_mean": mean(chosen),
            "shared": _over_sites(shared),
            "sites": own,
        }
    }


def _left_out_figures(study: StudyConfig, data: Path, test: BySite) -> dict[str, Any]:
    """Of a hospital that is left out, all of it the test: of those pictures that it tests on where it takes part."""
    from benchmarks.grid.hospitals import tested_when_in

    if study.simulation is None or study.simulation.partition is None or study.simulation.partition.left_out is None:
        return {}
    pictures = [figures[STUDENT] for site in _counting(test) for figures in test[site]]
    for site, ids in tested_when_in(study, data).items():
        own = [only(figures, ids) for figures in pictures]
        if any(len(figures["id"]) for figures in own):
            return {"left_out": {"site": site, **summary(own), "n": sum(len(figures["id"]) for figures in own)}}
    return {}


def _over_sites(sites: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    dice = [figures["dice"] for figures in sites.values()]
    return {"dice_mean": mean(dice), "dice_worst": min(dice, default=None)}


def _of(pictures: BySite, sites: Iterable[str], kind: str) -> list[Figures]:
    return [figures[kind] for site in sites for figures in pictures[site] if kind in figures]


def _counting(sites: Iterable[str]) -> list[str]:
    """The sites whose test pictures count."""
    from sites.partition import OFFICIAL_TEST

    return [OFFICIAL_TEST] if OFFICIAL_TEST in sites else sorted(sites)


if __name__ == "__main__":
    sys.exit(main())
