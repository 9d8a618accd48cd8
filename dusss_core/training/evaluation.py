"""Figures of a student, of text-guided masks, of a teacher: on pictures whose masks are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dusss_core.build import build_student, build_vlm
from dusss_core.config import AUTO, TrainingConfig
from dusss_core.inference import evaluating, predict_logits, to_input
from dusss_core.intervals import spread
from dusss_core.metrics import Scores, to_classes
from dusss_core.models import VisionLanguageModel
from dusss_core.models.told import Told
from dusss_core.models.weights import load_tensors
from dusss_core.models.words import Words
from dusss_core.objectives import reads_sentences
from dusss_core.phases import Phase
from dusss_core.records import Split
from dusss_core.runtime import MOST_EVAL_PICTURES, runtime_of
from dusss_core.text.bank import TextBank, build_text_bank
from dusss_core.training.statistics import with_own_statistics
from dusss_core.transfer import sent

Logits = np.ndarray | Sequence[np.ndarray]


def evaluate_student(
    config: TrainingConfig,
    student: dict[str, Tensor],
    split: Split,
    device: str | torch.device = "cpu",
    text: TextBank | None = None,
    *,
    distances: bool = True,
    behind: bool = False,
) -> dict[str, float]:
    """Mean Dice, IoU and HD95 (pixels) of a student, picture alone, over the records with masks.

    Args:
        student: a whole student's tensors (under FedBN with a site's own normalisation layers).
        text: features of the split's sentences, where the student is given them; elsewhere not looked at.
        distances: with HD95, which takes most of the time.
        behind: with what stands behind the means, `dusss_core.intervals.spread`.

    Returns:
        {"dice", "iou", "hd95", "n"}; only "n": 0 where no record has a mask. Of a student that is given sentences also
        "text_dice", "text_iou", "text_hd95": with the sentence, over the records that have one.
    """
    split = split.select(np.flatnonzero(split.masked))
    if not len(split):
        return {"n": 0.0}
    model = build_student(config).to(device, memory_format=runtime_of(config, Phase.SEGMENT, device).memory_format)
    load_tensors(model, student)
    return score_model(config, model, split, device, text, distances=distances, behind=behind)


def at_its_best(
    config: TrainingConfig,
    student: dict[str, Tensor],
    train: Split,
    val: Split,
    device: str | torch.device = "cpu",
    text: TextBank | None = None,
) -> dict[str, Tensor]:
    """A whole student with statistics fitted to its weights, or with those that were followed in training, whichever is
    better on validation; fitted ones where nothing tells. As it is without FedBN.

    Args:
        student: global weights and a site's own normalisation layers.
        text: features of the sentences of both splits, where the student is given them.
    """
    fitted = with_own_statistics(config, Phase.SEGMENT, student, train, text, device)
    if not config.local_norm or not val.masked.any():
        return fitted
    figure = "dice" if text is None else "text_dice"
    followed, refitted = (
        evaluate_student(config, one, val, device, text, distances=False).get(figure, 0.0) for one in (student, fitted)
    )
    return student if followed > refitted else fitted


def text_guided_masks(
    config: TrainingConfig,
    vlm: dict[str, Tensor],
    split: Split,
    text: TextBank | None,
    device: str | torch.device = "cpu",
) -> Logits:
    """Text-guided masks of a split as logits, Eq. 10.

    Returns:
        N x outputs x H x W, float16 (a list of arrays where pictures differ in size); NaN for records without text.
    """
    model, runtime = build_vlm(config).to(device), runtime_of(config, Phase.PRETRAIN, device)
    batch = runtime.eval_batch
    if config.runtime.channels_last == AUTO:
        model = model.to(memory_format=runtime.memory_format)
    elif config.runtime.eval_batch == AUTO:
        # students learn from these masks, which stay as they were, to the last bit, where a study leaves its layout to
        # nobody: the batch alone moves one number in a million by a step of float16
        batch = MOST_EVAL_PICTURES
    load_tensors(model, vlm)
    if text is None:
        text = build_text_bank(split.sentences, config.vlm.text, None, device, encoder=model.text_encoder)
    return ground_split(config, model, split, text, device, batch)


def evaluate_logits(
    config: TrainingConfig, logits: Logits, split: Split, *, text_only: bool = True
) -> dict[str, float]:
    """Mean Dice and IoU of given mask logits over the records with masks (and with text).

    Returns:
        {"dice", "iou", "n"}; only "n": 0 where there is none.
    """
    keep = np.flatnonzero(split.masked & (split.has_text | (not text_only)))
    if not len(keep):
        return {"n": 0.0}
    kept = logits[keep] if isinstance(logits, np.ndarray) else [logits[i] for i in keep]
    return score_logits(config, kept, split.select(keep))


def score_model(
    config: TrainingConfig,
    model: nn.Module,
    split: Split,
    device: str | torch.device,
    text: TextBank | None = None,
    *,
    distances: bool = True,
    behind: bool = False,
) -> dict[str, float]:
    """Mean figures of a student over a split whose records all have masks: "dice", "iou", perhaps "hd95" of the picture
    alone. Where it is given sentences, and `text` has their features, "text_dice" and so on with the sentence, over the
    records that have one."""
    runtime = runtime_of(config, Phase.SEGMENT, device)
    logits = predict_logits(model, split.images, config.image, device, runtime.eval_batch, amp=runtime.amp)
    figures = score_logits(config, logits, split, distances=distances, behind=behind)
    told = np.flatnonzero(split.has_text)
    if text is not None and len(told) and reads_sentences(config):
        split = split.select(told)
        logits = told_logits(config, model, split, text, device)
        with_text = score_logits(config, logits, split, distances=distances, behind=behind)
        figures |= {f"text_{name}": value for name, value in with_text.items() if name != "n"}
    return figures


def told_logits(
    config: TrainingConfig, model: nn.Module, split: Split, text: TextBank, device: str | torch.device
) -> Logits:
    """Logits of a student that is given each picture's sentence (or nothing, where there is none), as
    `predict_logits`."""
    runtime = runtime_of(config, Phase.SEGMENT, device)

    def predicted(positions: np.ndarray, pictures: Logits) -> Logits:
        tokens, mask = text.features(torch.from_numpy(split.sentence[positions]))
        told = Told(model, Words(tokens.to(device), mask.to(device)))
        return predict_logits(told, pictures, config.image, device, runtime.eval_batch, amp=runtime.amp)

    everybody, images = np.arange(len(split)), split.images
    whole = isinstance(images, np.ndarray) and images.shape[2:] == (config.image.size, config.image.size)
    # windows of one picture share its sentence
    batches = np.split(everybody, everybody[runtime.eval_batch :: runtime.eval_batch]) if whole else everybody[:, None]
    if isinstance(images, np.ndarray):
        parts = [predicted(positions, images[positions]) for positions in batches]
        return np.concatenate(parts) if parts else predict_logits(model, images, config.image, device, 1)
    return [predicted(positions, [images[positions[0]]])[0] for positions in batches]


def score_logits(
    config: TrainingConfig, logits: Logits, split: Split, *, distances: bool = False, behind: bool = False
) -> dict[str, float]:
    """Mean figures of mask logits over a split whose records all have masks; with `behind` also what stands behind
    them."""
    scores = scores_of_logits(config, logits, split, distances=distances, pixels=behind)
    figures = {name: float(value) for name, value in scores.mean().items()}
    return figures | (spread(scores.per_image(), scores.pixels(), split.groups) if behind and len(split) else {})


def scores_of_logits(
    config: TrainingConfig, logits: Logits, split: Split, *, distances: bool = False, pixels: bool = False
) -> Scores:
    """Figures of mask logits, picture by picture, over a split whose records all have masks."""
    scores = Scores(config.image.classes, distances=distances, pixels=pixels)
    if isinstance(logits, np.ndarray):
        scores.add(to_classes(logits), np.asarray(split.masks))
    else:
        for z, mask in zip(logits, split.masks, strict=True):
            scores.add(to_classes(z)[None], np.asarray(mask)[None])
    return scores


@torch.inference_mode()
def ground_split(
    config: TrainingConfig,
    vlm: VisionLanguageModel,
    split: Split,
    text: TextBank,
    device: str | torch.device,
    batch: int | None = None,
) -> Logits:
    """`text_guided_masks` with a built model, whose mode is left as it was.

    Args:
        batch: pictures at a time; None: as many as are evaluated.
    """
    with evaluating(vlm):
        if isinstance(split.images, np.ndarray):
            batch = batch or runtime_of(config, Phase.PRETRAIN, device).eval_batch
            return _ground_batches(config, vlm, split, text, device, batch)
        return [_ground_whole(config, vlm, split, i, text, device) for i in range(len(split))]


def _ground_batches(config, vlm, split, text, device, batch: int) -> np.ndarray:
    n, _, height, width = split.images.shape
    out = np.full((n, config.image.outputs, height, width), np.nan, dtype=np.float16)
    with_text = np.flatnonzero(split.has_text)
    for start in range(0, len(with_text), batch):
        positions = with_text[start : start + batch]
        sentence = torch.from_numpy(split.sentence[positions])
        x = to_input(torch.from_numpy(np.ascontiguousarray(split.images[positions])).to(device), config.image)
        logits = _ground(config, vlm, x, text, sentence)
        twice = _mirrors(config, text, sentence).nonzero().flatten()
        if len(twice):
            (places,) = sent(device, twice)
            mirrored = _ground(config, vlm, x[places].flip(-1), text, sentence[twice], mirrored=True).flip(-1)
            logits[places] = (logits[places] + mirrored) / 2
        out[positions] = logits.clamp(-60, 60).cpu().numpy().astype(np.float16)
    return out


def _ground(config, vlm, x: Tensor, text, sentence: Tensor, mirrored: bool = False) -> Tensor:
    """B x outputs x H x W float32 logits, each sentence in its picture."""
    tokens, mask = text.features(sentence, mirrored=torch.full_like(sentence, mirrored, dtype=torch.bool))
    amp = runtime_of(config, Phase.PRETRAIN, x.device).amp
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=amp):
        return vlm(x, tokens.to(x.device), mask.to(x.device)).float()


def _mirrors(config, text, sentence: Tensor) -> Tensor:
    """B bool, on the CPU: records whose mask is also read from the mirrored picture. What was never trained on tells
    nothing."""
    return text.may_flip(sentence) & (config.vlm.mirror and config.pretrain.flip)


def _ground_whole(config, vlm, split, i, text, device) -> np.ndarray:
    if split.sentence[i] < 0:
        return np.full((config.image.outputs, *split.images[i].shape[1:]), np.nan, dtype=np.float16)
    sentence, runtime = torch.from_numpy(split.sentence[i : i + 1]), runtime_of(config, Phase.PRETRAIN, device)

    def logits_of(picture: np.ndarray, mirrored: bool) -> np.ndarray:
        tokens, mask = text.features(sentence, mirrored=torch.tensor([mirrored]))
        grounded = _Grounded(vlm, tokens.to(device), mask.to(device))
        return predict_logits(grounded, [picture], config.image, device, runtime.eval_batch, amp=runtime.amp)[0]

    logits = logits_of(split.images[i], False)
    if _mirrors(config, text, sentence).item():
        mirrored = logits_of(np.ascontiguousarray(split.images[i][..., ::-1]), True)[..., ::-1]
        logits = ((logits.astype(np.float32) + mirrored) / 2).astype(logits.dtype)
    return logits


class _Grounded(nn.Module):
    """The model with one sentence fixed, for the sliding window."""

    def __init__(self, vlm: nn.Module, tokens: Tensor, mask: Tensor):
        super().__init__()
        self._look, self._tokens, self._mask = vlm.forward, tokens, mask

    def forward(self, x: Tensor) -> Tensor:
        return self._look(x, self._tokens.expand(len(x), -1, -1), self._mask.expand(len(x), -1))
