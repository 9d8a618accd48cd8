"""A membership-inference audit of private training beside the accountant's bound, from one run.

    python benchmarks/private_audit.py polypgen --data DIR                    real records
    python benchmarks/private_audit.py polypgen --data DIR --kind canaries    the same, their masks turned inside out
    python benchmarks/private_audit.py --page                                 table in docs/, from the files alone

One hospital with all private pictures of the study trains the head, as in `private_dice.py --means hospital`. A coin
decides of each record whether it takes part. The attacker sees every noised sum, knows all records, their augmentation
and the clipping, everything but the coins and the noise, and guesses for the records that it is surest of
(`dusss_core/privacy/audit.py`). Each run is one small JSON file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.private_studies import EPSILONS, STUDIES, Variant, places_of
from dusss_core.errors import UserError
from dusss_core.files import write_json, write_text
from feddusss import cli

if TYPE_CHECKING:
    import numpy as np

    from dusss_core.records import Split
    from server.study.config import StudyConfig

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "privacy.md"
BEGIN, END = "<!-- audit: written by benchmarks/private_audit.py -->", "<!-- audit: end -->"
KINDS = {"records": "records as they are", "canaries": "records whose masks are turned inside out"}
GUESSED_SHARE = 0.25
"""Of the candidates, those that are guessed for: fixed before any run. More guesses are less sure ones."""
CONFIDENCE = 0.95


def main(argv: list[str] | None = None) -> int:
    """Audit one run, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", help=", ".join(name for name in STUDIES if "public" in STUDIES[name]))
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the data sets")
    parser.add_argument("--epsilon", default="8", choices=EPSILONS, help="the budget (8)")
    parser.add_argument(
        "--kind", default="records", choices=tuple(KINDS), help="; ".join(f"{k}: {v}" for k, v in KINDS.items())
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/private_dice"), help="folder for runs")
    parser.add_argument(
        "--results", type=Path, default=HERE / "results" / "private_audit", help="folder for JSON files"
    )
    parser.add_argument("--page", action="store_true", help="write docs/privacy.md's table")
    cli.add_common_arguments(parser)
    return cli.run(_command, parser, argv)


def _command(arguments: argparse.Namespace) -> int:
    if arguments.page:
        write_page(read_results(arguments.results), PAGE)
        return cli.OK
    if arguments.study is None:
        raise UserError("no study is named", "name one, or --page")
    variant = Variant(arguments.study, "supervised", arguments.epsilon, arguments.seed, "hospital")
    target = arguments.results / f"{variant.file}-{arguments.kind}.json"
    if target.is_file():
        print(f"measured already: {target}")
        return cli.OK
    study, train = _one_hospital(variant, arguments)
    result = {"study": variant.study, "seed": variant.seed, "kind": arguments.kind}
    result |= audit(study, train, arguments.kind, float(variant.name))
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_json(target, result)
    print(f"written: {target}: {result}", flush=True)
    return cli.OK


def audit(study: StudyConfig, train: Split, kind: str, budget: float, delta: float = 1e-5) -> dict[str, Any]:
    """Train once, with half of `train` by coins, and attack.

    Args:
        study: with the noise that `budget` asks for.
        train: the candidates, all labelled.

    Returns:
        What the JSON file holds, beside names.
    """
    from benchmarks.grid.trial import provenance
    from dusss_core.phases import Phase
    from dusss_core.privacy.accounting import epsilon
    from dusss_core.privacy.audit import lower_bound, right_guesses
    from dusss_core.privacy.mechanism import charge_of
    from dusss_core.training import initial_shared

    config = study.training()
    trainer = _overheard(config, _turned_inside_out(train) if kind == "canaries" else train)
    model = initial_shared(study, Phase.SEGMENT)
    for number in range(1, config.segment.rounds + 1):
        trainer.load_shared(model)
        trainer.train_round(number)
        model = trainer.shared()
    candidates = len(train)
    guesses = 2 * int(GUESSED_SHARE * candidates / 2)
    right = right_guesses(trainer.ear.scores(), trainer.inside, guesses)
    return {
        "budget": budget,
        "delta": delta,
        "upper_bound": round(epsilon([charge_of(config, Phase.SEGMENT)] * config.segment.rounds, delta), 4),
        "lower_bound": round(lower_bound(right, guesses, candidates, delta, CONFIDENCE), 4),
        "confidence": CONFIDENCE,
        "candidates": candidates,
        "inside": int(trainer.inside.sum()),
        "guesses": guesses,
        "right": right,
        "right_of_all": right_guesses(trainer.ear.scores(), trainer.inside, candidates),
        "steps": config.segment.rounds * config.privacy.steps_per_round,
        "noise_multiplier": config.privacy.noise_multiplier,
        **provenance(),
    }


def _overheard(config, train: Split):
    """The production trainer, whose draws leave out those whose coin fell so, and whose sums are overheard."""
    import numpy as np
    import torch

    from dusss_core.privacy.audit import Eavesdropper
    from dusss_core.privacy.segment import PrivateSegmenter
    from dusss_core.privacy.step import clipped_sum, trained

    class Overheard(PrivateSegmenter):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.inside = self.randomness.poisson_draw(len(self.train), 0.5)
            self.ear = Eavesdropper(len(self.train))

        def _drawn(self) -> np.ndarray:
            return super()._drawn() & self.inside

        def set_gradients(self, batch, draw, share_done, anchor):
            privacy = self.config.privacy
            self.model.eval()
            each = [
                _flat(clipped_sum(self.model, lambda unit: self.loss_of(unit, share_done), [unit], privacy.clip))
                for unit in self.units(np.arange(len(self.train)))
            ]
            figures = super().set_gradients(batch, draw, share_done, anchor)
            noised = self.expected * _flat([parameter.grad for parameter in trained(self.model)])
            self.ear.step(np.stack(each), noised)
            return figures

    def _flat(tensors) -> np.ndarray:
        return torch.cat([tensor.flatten() for tensor in tensors]).double().numpy()

    return Overheard(config, "audited", train, train, records=max(1, len(train) // 2))


def _turned_inside_out(train: Split) -> Split:
    """Records that pull far, against what the head knows: their gradients are clipped rather than short."""
    from dataclasses import replace

    import numpy as np

    return replace(train, masks=1 - np.asarray(train.masks))


def _one_hospital(variant: Variant, arguments: argparse.Namespace) -> tuple[StudyConfig, Split]:
    """The variant's study with its noise planned, and all training records that are private in it, labelled."""
    import numpy as np

    from server.simulation.local import load_local
    from server.simulation.materialise import materialise
    from server.simulation.privacy import plan_noise
    from server.study.config import load_study

    places = places_of(variant, arguments.data, arguments.work)
    pooled = ['simulation.partition={"by": "random", "sites": 1}']
    study = load_study(variant.preset, [*variant.overrides(), *places, *pooled, *arguments.overrides])
    folder = arguments.work / f"audit-{variant.study}-seed{variant.seed}"
    train = load_local(materialise(study, folder)[0], study).splits["train"]
    return plan_noise(study, study.simulation.privacy), train.select(np.flatnonzero(train.labelled))


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All files of this benchmark in `folder`."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]


def write_page(results: Sequence[dict[str, Any]], page: Path) -> None:
    """Rewrite what lies between the two markers of `page`.

    Raises:
        UserError: the page lacks a marker, or there are no results.
    """
    if not results:
        raise UserError(
            "there are no results", "measure some first: python benchmarks/private_audit.py STUDY --data DIR"
        )
    from benchmarks.pages import with_body

    write_text(page, with_body(page, BEGIN, END, table(results)))


def table(results: Sequence[dict[str, Any]]) -> str:
    """A row for each run."""
    lines = [
        "| study | guessed for | candidates | right guesses | epsilon, at least (95 %) | epsilon, at most |",
        "|---|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda r: (r["study"], r["budget"], r["kind"], r["seed"])):
        right = f"{result['right']} of {result['guesses']}"
        bounds = f"{result['lower_bound']:.2f} | {result['upper_bound']:.2f}"
        name = f"`{result['study']}`, seed {result['seed']}"
        lines.append(f"| {name} | {KINDS[result['kind']]} | {result['candidates']} | {right} | {bounds} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
