"""Whether step 1 has learnt anything from the sentences: retrieval, sides, areas, and what its uncertainty knows.

    python benchmarks/heart.py RUN --site SITE.yaml [--split test]

RUN is the folder of a finished run, SITE.yaml a site whose pictures have masks and sentences. The model is the
coordinator's, also where sites keep layers of their own. Prints one JSON object:

retrieval  by the similarity of step 1 alone: the rank of a picture's sentence among the distinct ones of the split,
           0 first and 1 last, averaged over sentences (over pictures, popularity alone does well); what popularity has;
           whether the nearest sentence names the picture's side (left, right, both: balanced), and among sentences of
           one side which;
masks      text-guided masks: Dice for sentences of one side and of both, the share of a mask on the half of the
           picture that its sentence names, predicted over true area by the size of the finding;
sss        D_SSS of Eq. 4: its standard deviation among the sentences of one picture, its rank correlation over
           sentences with the number of training records that share them; the cosine between the gradients of the
           encoder with and without SSS, on one batch.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from dusss_core.errors import UserError
from feddusss import cli

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from dusss_core.config import TrainingConfig
    from dusss_core.models.vlm import VisionLanguageModel
    from dusss_core.records import Split
    from dusss_core.text.bank import TextBank

BATCH = 64


def main(argv: list[str] | None = None) -> int:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--site", type=Path, required=True, metavar="FILE", help="site whose pictures are used")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val", help="which of them (val)")
    cli.add_common_arguments(parser, overrides=False)
    return cli.run(_command, parser, argv)


def _command(arguments: argparse.Namespace) -> int:
    from dusss_core.build import build_vlm
    from dusss_core.models.weights import load_tensors
    from dusss_core.text.bank import build_text_bank
    from server.runs.checkpoints import read_model
    from server.simulation.local import load_local
    from server.study.config import load_study

    study = load_study(arguments.run / "config.yaml").training()
    site = load_local(arguments.site, study)
    split, train = site.splits[arguments.split], site.splits["train"]
    split = split.select((split.has_text & split.masked).nonzero()[0])
    if not len(split):
        raise UserError(f"{arguments.site}: no {arguments.split} picture has a mask and a sentence")
    vlm = build_vlm(study).to(site.device)
    load_tensors(vlm, read_model(arguments.run / "checkpoints" / "vlm.safetensors"))
    bank = build_text_bank(split.sentences, study.vlm.text, site.text_cache, site.device)
    print(json.dumps(measure(study, vlm, split, bank, sentence_counts(train)), indent=1))
    return cli.OK


def measure(
    config: TrainingConfig, vlm: VisionLanguageModel, split: Split, bank: TextBank, counts: dict[str, int]
) -> dict[str, Any]:
    """All figures of the module's text, on pictures that all have a mask and a sentence.

    Args:
        counts: training records by sentence.
    """
    vlm.eval()
    similarity, d_sss = similarities(config, vlm, split, bank)
    return {
        "pictures": len(split),
        "retrieval": retrieval(similarity, split, counts),
        "masks": masks(config, vlm, split, bank),
        "sss": uncertainty(d_sss, split, counts) | {"gradient_cosine": gradient_cosine(config, vlm, split, bank)},
    }


def sentence_counts(train: Split) -> dict[str, int]:
    """Training records by sentence."""
    own = train.sentence[train.has_text]
    return {text: int((own == number).sum()) for number, text in enumerate(train.sentences)}


def side_of(sentence: str) -> str:
    """left, right or both: which sides the sentence names; both where it names none."""
    named = {side for side in ("left", "right") if re.search(rf"\b{side}\b", sentence.lower())}
    return named.pop() if len(named) == 1 else "both"


def similarities(config, vlm, split: Split, bank: TextBank) -> tuple[np.ndarray, np.ndarray]:
    """Similarity as contrast has it, and D_SSS, of the N pictures with the K distinct sentences: N x K each."""
    import torch

    from dusss_core.inference import to_input
    from dusss_core.losses.similarity import supervised_similarity
    from dusss_core.pretraining import pretraining_of

    method, device = pretraining_of(config)(config, vlm), next(vlm.parameters()).device
    found: list[tuple[Tensor, Tensor]] = []
    with torch.inference_mode():
        tokens, mask = bank.features(torch.arange(len(split.sentences)))
        text = vlm.encode_text(tokens.to(device), mask.to(device)).embedding
        for start in range(0, len(split), BATCH):
            x = to_input(torch.from_numpy(split.images[start : start + BATCH].copy()).to(device), config.image)
            image = vlm.encode_image(x).embedding
            _, d_sss = supervised_similarity(
                image, text, config.pretrain.uncertainty, sss=True, detach_uncertainty=True
            )
            found.append((method.similarity(image, text).cpu(), d_sss.cpu()))
    return tuple(torch.cat(some).float().numpy() for some in zip(*found, strict=True))


def retrieval(similarity: np.ndarray, split: Split, counts: dict[str, int]) -> dict[str, float]:
    """Ranks and sides; only sentences that the split has take part."""
    import numpy as np

    present, own = np.unique(split.sentence, return_inverse=True)
    similarity = similarity[:, present]
    popularity = np.broadcast_to([counts.get(split.sentences[k], 0) for k in present], similarity.shape)
    sides = np.array([side_of(split.sentences[k]) for k in present])
    truth, nearest = sides[own], sides[similarity.argmax(1)]
    figures = {
        "sentences": len(present),
        "rank": _rank(similarity, own),
        "rank_by_popularity": _rank(popularity, own),
    }
    one_sided = np.flatnonzero(sides != "both")
    alone = truth != "both"
    if len(one_sided) and alone.any():
        guess = sides[one_sided][similarity[alone][:, one_sided].argmax(1)]
        figures["left_or_right"] = float((guess == truth[alone]).mean())
    figures["side_balanced"] = float(np.mean([(nearest[truth == side] == side).mean() for side in np.unique(truth)]))
    return figures


def _rank(scores: np.ndarray, own: np.ndarray) -> float:
    """Mean over sentences of the mean rank, in [0, 1], of their pictures; ties count half."""
    import numpy as np

    mine = scores[np.arange(len(scores)), own][:, None]
    ranks = ((scores > mine).sum(1) + ((scores == mine).sum(1) - 1) / 2) / max(1, scores.shape[1] - 1)
    return float(np.mean([ranks[own == k].mean() for k in np.unique(own)]))


def masks(config, vlm, split: Split, bank: TextBank) -> dict[str, Any]:
    """Text-guided masks, by side and by size of the finding."""
    import numpy as np

    from benchmarks.grid.measures import area_by_size, count_pixels, mean
    from dusss_core.metrics import to_classes
    from dusss_core.training.evaluation import ground_split, scores_of_logits

    logits = ground_split(config, vlm, split, bank, next(vlm.parameters()).device)
    dice = scores_of_logits(config, logits, split).per_image()["dice"]
    predicted, truth = to_classes(np.asarray(logits, np.float32)) > 0, np.asarray(split.masks) > 0
    side = np.array([side_of(split.sentences[k]) for k in split.sentence])
    # which half of the picture is called left: as the true masks of this split have it
    half = predicted.shape[2] // 2
    left_is_right = truth[side == "left"][:, :, :half].sum() < truth[side == "left"][:, :, half:].sum()

    def on_named_side(mask: np.ndarray, name: str) -> float:
        left = mask[:, :, half:] if left_is_right else mask[:, :, :half]
        share = left.sum((1, 2)) / np.maximum(1, mask.sum((1, 2)))
        return (share if name == "left" else 1 - share)[mask.any((1, 2))]

    figures: dict[str, Any] = {"dice": float(dice.mean())}
    alone = [side == "left", side == "right"]
    if any(some.any() for some in alone):
        for name, mask in (("on_named_side", predicted), ("truth_on_named_side", truth)):
            shares = [on_named_side(mask[some], word) for some, word in zip(alone, ("left", "right"), strict=True)]
            figures[name] = mean(np.concatenate(shares))
        figures["dice_one_side"] = mean(dice[side != "both"])
        figures["dice_both_sides"] = mean(dice[side == "both"])
    pixels = [count_pixels(*pair) for pair in zip(predicted, truth, strict=True)]
    counted = {name: np.array([some[name] for some in pixels]) for name in pixels[0]}
    return figures | {"area_by_size": area_by_size([counted])}


def uncertainty(d_sss: np.ndarray, split: Split, counts: dict[str, int]) -> dict[str, float]:
    """Spread of D_SSS, and whether it knows which sentences many pictures share."""
    import numpy as np
    from scipy.stats import spearmanr

    own = d_sss[np.arange(len(d_sss)), split.sentence]
    present = np.unique(split.sentence)
    told = [own[split.sentence == k].mean() for k in present]
    shared = [counts.get(split.sentences[k], 0) for k in present]
    return {
        "median": float(np.median(d_sss)),
        "spread_within_row": float(d_sss.std(1).mean()),
        "spread_of_own": float(own.std()),
        # None where either is the same for all sentences
        "rank_correlation_with_records": (
            float(spearmanr(told, shared).statistic) if np.ptp(told) and np.ptp(shared) else None
        ),
    }


def gradient_cosine(config, vlm, split: Split, bank: TextBank) -> float:
    """Cosine of the image encoder's gradients of Eq. 8, within a batch, with SSS and with plain cosines."""
    import torch

    from dusss_core.inference import to_input
    from dusss_core.losses.contrastive import cross_modal_loss, same_sentence
    from dusss_core.losses.similarity import supervised_similarity

    device = next(vlm.parameters()).device
    sentence = torch.from_numpy(split.sentence[:BATCH])
    x = to_input(torch.from_numpy(split.images[:BATCH].copy()).to(device), config.image)
    tokens, mask = bank.features(sentence)
    same = same_sentence(sentence, sentence).to(device)
    found = []
    for sss in (True, False):
        vlm.zero_grad()
        image = vlm.encode_image(x).embedding
        text = vlm.encode_text(tokens.to(device), mask.to(device)).embedding
        similarity, _ = supervised_similarity(
            image, text, config.pretrain.uncertainty, sss=sss, detach_uncertainty=config.method.detach_uncertainty
        )
        cross_modal_loss(similarity, same, vlm.log_scale, config.method.pairs).backward()
        found.append(torch.cat([p.grad.flatten() for p in vlm.image.encoder.parameters() if p.grad is not None]))
    vlm.zero_grad()
    return float(torch.nn.functional.cosine_similarity(*found, dim=0))


if __name__ == "__main__":
    sys.exit(main())
