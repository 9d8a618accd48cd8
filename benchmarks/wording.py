"""How stable a text-guided mask is when the sentence says the same in other words (the paper's Fig. 5).

    python benchmarks/wording.py RUN --site SITE.yaml --name "SSS"
    python benchmarks/wording.py --page

RUN is the folder of a finished run, SITE.yaml a site whose test pictures have sentences. Each picture gets its mask
from the sentence and from other wordings of it, which no training has seen; sentences that allow no other wording are
left out. One small JSON file per name; `--page` writes the table and the chart of docs/results.md from those alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from dusss_core.errors import UserError
from dusss_core.files import write_json, write_text
from feddusss import cli

if TYPE_CHECKING:
    import numpy as np

    from dusss_core.records import Split

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
CHART = HERE.parent / "docs" / "images" / "wording.svg"
BEGIN, END = "<!-- wording: written by benchmarks/wording.py -->", "<!-- wording: end -->"
QUANTILES = tuple(range(0, 101, 5))
"""Of pictures; the chart leaves out the worst single one."""

Result = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Measure one run, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished run")
    parser.add_argument("--site", type=Path, metavar="FILE", help="site whose test pictures are used")
    parser.add_argument("--name", help="what the run is called in the table")
    parser.add_argument("--wordings", type=int, default=5, help="other wordings of each sentence (5)")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "wording", help="folder for JSON files")
    parser.add_argument("--page", action="store_true", help="write docs/results.md's table, and the chart")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_command, parser, argv)


def _command(arguments: argparse.Namespace) -> int:
    if arguments.page:
        files = sorted(arguments.results.glob("*.json"))
        write_page([json.loads(file.read_text(encoding="utf-8")) for file in files], PAGE, CHART)
        return cli.OK
    if not (arguments.run and arguments.site and arguments.name):
        raise UserError("a run, --site and --name are needed", "or --page alone")
    result = {"name": arguments.name, **measure(arguments.run, arguments.site, arguments.wordings)}
    arguments.results.mkdir(parents=True, exist_ok=True)
    target = arguments.results / f"{arguments.name.replace(' ', '_')}.json"
    write_json(target, result)
    print(f"written: {target}")
    return cli.OK


def measure(run: Path, site_file: Path, count: int) -> Result:
    """Masks of the site's test pictures from the sentence and from `count` other wordings.

    Returns:
        "agreement": mean over pictures and wordings of the Dice between a wording's mask and the sentence's, with its
        `QUANTILES` over pictures; "dice": mean Dice to the truth of the sentence's masks and of the wordings';
        "spread": mean over pictures of the standard deviation of Dice to the truth over all wordings.
    """
    import numpy as np

    from benchmarks.grid.trial import provenance
    from dusss_core.metrics import Scores, to_classes
    from dusss_core.text.bank import build_text_bank
    from dusss_core.training import text_guided_masks
    from server.runs.checkpoints import read_model
    from server.simulation.local import load_local
    from server.study.config import load_study

    study = load_study(run / "config.yaml")
    site = load_local(site_file, study)
    vlm = read_model(run / "checkpoints" / "vlm.safetensors")
    split = _with_other_wordings(site.splits["test"], count)
    if not len(split):
        raise UserError(f"{site_file}: no test picture has a mask and a sentence that allows another wording")

    masks = []
    for number in range(count + 1):
        worded = _worded(split, number)
        bank = build_text_bank(worded.sentences, study.vlm.text, None, site.device, augmented=False)
        masks.append(to_classes(np.asarray(text_guided_masks(study, vlm, worded, bank, site.device), np.float32)))

    def dice(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
        scores = Scores(study.image.classes)
        scores.add(predicted, truth)
        return scores.per_image()["dice"]

    truth = np.asarray(split.masks)
    agreement = np.mean([dice(mask, masks[0]) for mask in masks[1:]], axis=0)
    to_truth = np.stack([dice(mask, truth) for mask in masks])
    return {
        "pictures": len(split),
        "wordings": count,
        "agreement": round(float(agreement.mean()), 4),
        "quantiles": [round(float(value), 4) for value in np.percentile(agreement, QUANTILES)],
        "dice": {"sentence": round(float(to_truth[0].mean()), 4), "wordings": round(float(to_truth[1:].mean()), 4)},
        "spread": round(float(to_truth.std(axis=0).mean()), 4),
        "method": study.method.model_dump(mode="json"),
        **provenance(),
    }


def _with_other_wordings(split: Split, count: int) -> Split:
    """Records with a mask and a sentence of which there are `count` distinct wordings besides itself."""
    import numpy as np

    enough = [len({sentence, *_wordings(sentence, count)}) == count + 1 for sentence in split.sentences]
    return split.select(np.flatnonzero(split.masked & split.has_text & np.array([*enough, False])[split.sentence]))


def _worded(split: Split, number: int) -> Split:
    """The same records, each sentence in its `number`-th wording; 0: as it is."""
    if number == 0:
        return split
    return replace(split, sentences=tuple(_wordings(sentence, number)[number - 1] for sentence in split.sentences))


def _wordings(sentence: str, count: int) -> list[str]:
    from dusss_core.text.wording import wordings

    # other draws than those of training
    return wordings(sentence, count, ("stability",))


def write_page(results: Sequence[Result], page: Path, chart: Path) -> None:
    """Rewrite what lies between the two markers of `page`, and the chart.

    Raises:
        UserError: the page lacks a marker, or there are no results.
    """
    from benchmarks.pages import standalone, with_body
    from server.report import plots

    if not results:
        raise UserError("there are no results", "measure a run first")
    lines = [
        "| | pictures | agreement of masks | Dice, the sentence | Dice, other wordings | spread of Dice |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        dice = r["dice"]
        figures = (r["agreement"], dice["sentence"], dice["wordings"], r["spread"])
        lines.append(f"| {r['name']} | {r['pictures']} | {' | '.join(f'{100 * value:.1f}' for value in figures)} |")
    series = [
        plots.Series(r["name"], list(zip(QUANTILES, r["quantiles"], strict=True))[1:], colour=i)
        for i, r in enumerate(results)
    ]
    told = "; ".join(f"{r['name']}: mean {r['agreement']:.3f}" for r in results)
    svg = plots.line_chart(
        f"Agreement of masks between wordings, by share of pictures. {told}",
        series,
        lambda value: f"{value:.3f}",
        across="% of pictures",
    )
    body = "\n".join([*lines, "", f"![Agreement of masks between wordings](images/{chart.name})", ""])
    text = with_body(page, BEGIN, END, body)
    chart.parent.mkdir(parents=True, exist_ok=True)
    write_text(chart, standalone(str(svg)))
    write_text(page, text)


if __name__ == "__main__":
    sys.exit(main())
