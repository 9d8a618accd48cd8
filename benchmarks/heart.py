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
           sentences with the number of training records that share them; that of the uncertainty of Eq. 2 with
           ambiguity, the number of sentences that fit a picture about equally (perplexity of p(sentence | picture) by
           the model's own cosines), and with the rank of the true sentence; the cosine between the gradients of the
           encoder with and without SSS, on one batch.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Pairs(NamedTuple):
    """N pictures with K sentences, N x K each."""

    similarity: np.ndarray
    """As contrast has it."""
    d_sss: np.ndarray
    """D_SSS of Eq. 4."""
    uncertainty: np.ndarray
    """Du of Eq. 2."""
    logits: np.ndarray
    """Cosines over the learned temperature."""


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
    own = vlm.text_encoder
    bank = build_text_bank(split.sentences, study.vlm.text, site.text_cache, site.device, encoder=own)
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
    pairs = similarities(config, vlm, split, bank)
    return {
        "pictures": len(split),
        "retrieval": retrieval(pairs.similarity, split, counts),
        "masks": masks(config, vlm, split, bank),
        "sss": uncertainty(pairs, split, counts) | {"gradient_cosine": gradient_cosine(config, vlm, split, bank)},
    }


def sentence_counts(train: Split) -> dict[str, int]:
    """Training records by sentence."""
    own = train.sentence[train.has_text]
    return {text: int((own == number).sum()) for number, text in enumerate(train.sentences)}


def side_of(sentence: str) -> str:
    """left, right or both: which sides the sentence names; both where it names none."""
    named = {side for side in ("left", "right") if re.search(rf"\b{side}\b", sentence.lower())}
    return named.pop() if len(named) == 1 else "both"


def similarities(config, vlm, split: Split, bank: TextBank) -> Pairs:
    """The N pictures with the K distinct sentences."""
    import torch

    from dusss_core.inference import to_input
    from dusss_core.losses.contrastive import temperature_scale
    from dusss_core.losses.similarity import cosine, gaussian_distance, supervised_similarity
    from dusss_core.pretraining import pretraining_of

    method, device = pretraining_of(config)(config, vlm), next(vlm.parameters()).device
    settings = config.pretrain.uncertainty
    found: list[tuple[Tensor, ...]] = []
    with torch.inference_mode():
        tokens, mask = bank.features(torch.arange(len(split.sentences)))
        text = vlm.encode_text(tokens.to(device), mask.to(device)).embedding
        for start in range(0, len(split), BATCH):
            x = to_input(torch.from_numpy(split.images[start : start + BATCH].copy()).to(device), config.image)
            image = vlm.encode_image(x).embedding
            _, d_sss = supervised_similarity(image, text, settings, sss=True, detach_uncertainty=True)
            distance = gaussian_distance(image.gaussian, text.gaussian, settings)
            logits = cosine(image.semantic, text.semantic) * temperature_scale(vlm.log_scale)
            found.append((method.similarity(image, text), d_sss, settings.scale * distance + settings.offset, logits))
    return Pairs(*(torch.cat(some).cpu().float().numpy() for some in zip(*found, strict=True)))


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

    def on_named_side(mask: np.ndarray, name: str) -> np.ndarray:
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


def uncertainty(pairs: Pairs, split: Split, counts: dict[str, int]) -> dict[str, float | None]:
    """Spread of D_SSS, and whether it knows which sentences many pictures share and which pictures are ambiguous."""
    import numpy as np
    from scipy.special import log_softmax
    from scipy.stats import spearmanr

    present, own = np.unique(split.sentence, return_inverse=True)
    row = np.arange(len(own))

    def by_sentence(values: np.ndarray) -> np.ndarray:
        return np.array([values[own == k].mean() for k in range(len(present))])

    def correlation(a: np.ndarray, b: np.ndarray) -> float | None:
        """None where either is the same for all sentences."""
        return float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else None

    records = np.array([counts.get(split.sentences[k], 0) for k in present])
    # a sentence that training lacks counts as if one record had it
    log_p = log_softmax(pairs.logits[:, present] + np.log(np.maximum(1, records)), axis=1)
    fitting = np.exp(-(np.exp(log_p) * log_p).sum(1))
    rank = (pairs.similarity[:, present] > pairs.similarity[row, split.sentence][:, None]).mean(1)
    own_d, own_u = (values[row, split.sentence] for values in (pairs.d_sss, pairs.uncertainty))
    return {
        "median": float(np.median(pairs.d_sss)),
        "spread_within_row": float(pairs.d_sss.std(1).mean()),
        "spread_of_own": float(own_d.std()),
        "rank_correlation_with_records": correlation(by_sentence(own_d), records),
        "rank_correlation_with_ambiguity": correlation(by_sentence(own_u), by_sentence(fitting)),
        "rank_correlation_with_rank": correlation(by_sentence(own_u), by_sentence(rank)),
    }


def gradient_cosine(config, vlm, split: Split, bank: TextBank) -> float | None:
    """Cosine of the image encoder's gradients of Eq. 8, within a batch, with SSS and with plain cosines; None where
    contrast does not teach the encoder (`vlm.cells_read: 0`)."""
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
        gradients = [p.grad.flatten() for p in vlm.image.encoder.parameters() if p.grad is not None]
        found.append(torch.cat(gradients) if gradients else torch.zeros(0))
    vlm.zero_grad()
    if not len(found[0]):
        return None
    return float(torch.nn.functional.cosine_similarity(*found, dim=0))


if __name__ == "__main__":
    sys.exit(main())
