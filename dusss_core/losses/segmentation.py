"""Losses of the segmentation phase: supervised, and from teacher and text-guided masks (DuSSS, Eq. 14 to 17).

One channel means one foreground class and a sigmoid; C channels mean a softmax over C classes, class 0 being
the background.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dusss_core.config import MethodConfig
from dusss_core.losses.precision import full_precision


@full_precision
def probabilities(logits: Tensor) -> Tensor:
    """Sigmoid of one channel, softmax over several: both are B x C x H x W."""
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)


@full_precision
def supervised_loss(
    logits: Tensor,
    mask: Tensor,
    *,
    dice: bool,
    weight: Tensor | None = None,
    region: Tensor | None = None,
    places: Tensor | None = None,
    sure: Tensor | None = None,
) -> Tensor:
    """L_sup, Eq. 14 (whose leading minus is a misprint): mean cross-entropy, and soft Dice if asked for.

    Args:
        logits: B x C x H x W. mask: B x H x W, integer class indices.
        dice: adds 1 - soft Dice, per picture and foreground class, with 1 added above and below so that a
            class that is absent and not predicted costs nothing.
        weight: B, at least 0: weights of the records in the mean; None: equal. All 0: a differentiable 0.
        region: H x W, bool: the pixels that count, at least one; None: all.
        places: int64, where `region` is True in H x W rows laid end to end. To count them a device would be waited for;
            None: it is.
        sure: B x H x W, bool: the pixels of each record that cost anything, in place of `region`. The mean is still
            that of all pixels: a record with three sure ones counts for little. Of a class without a sure pixel no Dice
            is asked: it may well be in the picture, and would be called absent. None: all.
    """
    if logits.shape[1] == 1:
        target = (mask > 0).to(logits.dtype)[:, None]
        pixels = F.binary_cross_entropy_with_logits(logits, target, reduction="none").squeeze(1)
    else:
        pixels = F.cross_entropy(logits, mask.long(), reduction="none")
    if sure is not None:
        per_record = (pixels * sure).mean(dim=(1, 2))
        region = sure[:, None]
    elif region is None:
        per_record = pixels.mean(dim=(1, 2))
    else:
        places = region.flatten().nonzero().squeeze(1) if places is None else places
        per_record = pixels.flatten(1).index_select(1, places).mean(dim=1)
    if dice:
        truth = (mask > 0)[:, None] if logits.shape[1] == 1 else F.one_hot(mask.long(), logits.shape[1]).movedim(-1, 1)
        per_record = per_record + _soft_dice_loss(logits, truth.to(logits.dtype), region, shown_only=sure is not None)
    return _weighted_mean(per_record, torch.ones_like(per_record) if weight is None else weight)


@full_precision
def pseudo_label_loss(logits: Tensor, target_probabilities: Tensor, *, dice: bool) -> Tensor:
    """Mean cost of soft pseudo-labels, which get no gradient: cross-entropy, and soft Dice if asked for.

    Args:
        logits, target_probabilities: B x C x H x W.
        dice: as in `supervised_loss`, with the target's probabilities in place of the mask.
    """
    return _pseudo_label_costs(logits, target_probabilities.detach(), 0.0, dice)[0].mean()


@full_precision
def merged_target(
    teacher_logits: Tensor,
    text_logits: Tensor,
    *,
    merge: Literal["logits", "probabilities"],
    text_weight: float,
    has_text: Tensor | None = None,
) -> Tensor:
    """The target of Eq. 15, from both pseudo-labels: B x C x H x W probabilities, detached.

    Args:
        teacher_logits, text_logits: B x C x H x W.
        merge: logits: sigmoid(2 (1 - w) z_teacher + 2 w z_text), which for w = 0.5 is the sum of Eq. 15 and
            so as sure as two independent witnesses together. probabilities: sigmoid(p_teacher + p_text),
            literally, whatever w.
        text_weight: w, in [0, 1].
        has_text: B, bool; False: the teacher's probabilities alone, whatever text_logits holds (even NaN).
    """
    teacher_logits, text_logits = teacher_logits.detach(), text_logits.detach()
    if merge == "logits":
        merged = 2 * ((1 - text_weight) * teacher_logits + text_weight * text_logits)
    else:
        merged = probabilities(teacher_logits) + probabilities(text_logits)
    if has_text is not None:
        merged = _where_record(has_text, merged, teacher_logits)
    return probabilities(merged)


@full_precision
def semi_supervised_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    text_logits: Tensor | None,
    has_text: Tensor | None,
    *,
    method: MethodConfig,
    confidence: float,
    dice: bool = False,
    teacher_ramp: float = 1.0,
    guided_weight: float = 1.0,
    teacher_only_weight: float = 1.0,
    text_share: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_semi, Eq. 15 to 17, and its parts.

    A record with text costs (CE to the merged target + CE to the text-guided mask) / 2, one without text CE
    to the teacher. Without the teacher, records with text cost CE to the text-guided mask and the others
    nothing; without text masks, every record costs CE to the teacher. The loss is the mean over the records
    that have a target.

    With a `text_share` s below 1 a record with text costs s times that, and 1 - s times what it would cost without; so
    at 0 its text is not looked at.

    Args:
        student_logits, teacher_logits, text_logits: B x C x H x W, pseudo-labels get no gradient. None, or
            the method's switch `teacher` or `text_mask` off: that path is off.
        has_text: B, bool; text_logits of the other records may be NaN. None: no record has.
        confidence: a pixel whose target is less sure than this, max_c p_c, weighs 0. The sum is still divided
            by all pixels: a picture with three sure ones counts less than one that is sure throughout.
        guided_weight, teacher_only_weight: factors on the cost of a record with and without text.
        text_share: s, in [0, 1].

    Returns:
        The scalar loss (a differentiable 0 when no record has a target), and detached scalars: `teacher`,
        `text`, `merged`, each the cost averaged over the records it applies to (0 if there are none), and
        `confident`, the share of target pixels that weigh. Parts of a path that is off are absent.
    """
    teacher_on = method.teacher and teacher_logits is not None
    text_on = method.text_mask and text_logits is not None and has_text is not None
    if not (teacher_on or text_on):
        return 0 * student_logits.sum(), {}
    nobody = torch.zeros(len(student_logits), dtype=torch.bool, device=student_logits.device)
    with_text = has_text.to(nobody) if text_on and text_share else nobody

    targets, weights = [], []  # the weights of one record add up to 1, or to 0 if it has no target
    if teacher_on and text_on:
        weight = 1 - teacher_ramp * (1 - method.merge_text_weight)
        merge = {"merge": method.merge, "text_weight": weight, "has_text": with_text}
        targets.append(merged_target(teacher_logits, text_logits, **merge))
        weights.append(torch.where(with_text, 0.5 * text_share, 1.0))
    elif teacher_on:
        targets.append(probabilities(teacher_logits.detach()))
        weights.append(torch.ones_like(nobody, dtype=torch.float32))
    if text_on:
        targets.append(probabilities(_where_record(with_text, text_logits.detach(), 0.0)))
        weights.append(torch.where(with_text, 0.5 * text_share if teacher_on else 1.0, 0.0))
    factors = [torch.where(with_text, guided_weight, teacher_only_weight)] * len(targets)
    if text_on and text_share < 1:
        if teacher_on:
            targets.insert(1, probabilities(teacher_logits.detach()))
            weights.insert(1, torch.where(with_text, 1 - text_share, 0.0))
            factors.insert(1, torch.full_like(factors[0], teacher_only_weight))
        else:
            factors = [text_share * factors[0]]

    results = [_pseudo_label_costs(student_logits, target, confidence, dice) for target in targets]
    cost, sure = (torch.stack(values) for values in zip(*results, strict=True))
    weight = torch.stack(weights)
    parts = {"confident": _weighted_mean(sure, weight)}
    if teacher_on:
        parts["teacher"] = _weighted_mean(cost[0], ~with_text)
    if text_on:
        parts["text"] = _weighted_mean(cost[-1], with_text)
    if teacher_on and text_on:
        parts["merged"] = _weighted_mean(cost[0], with_text)
    return _weighted_mean(cost * torch.stack(factors), weight), {name: value.detach() for name, value in parts.items()}


def _pixel_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """B x H x W."""
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").squeeze(1)
    return -(target * logits.log_softmax(dim=1)).sum(dim=1)


def _pseudo_label_costs(logits: Tensor, target: Tensor, confidence: float, dice: bool) -> tuple[Tensor, Tensor]:
    """Cost per record with unsure pixels at weight 0 in the CE, and each record's share of sure pixels: both B."""
    pixels = _pixel_cross_entropy(logits, target)
    certainty = torch.maximum(target, 1 - target).squeeze(1) if target.shape[1] == 1 else target.amax(dim=1)
    sure = certainty >= confidence
    cost = (pixels * sure).mean(dim=(1, 2))
    if dice:
        cost = cost + _soft_dice_loss(logits, target)
    return cost, sure.to(pixels.dtype).mean(dim=(1, 2))


def _soft_dice_loss(
    logits: Tensor, target: Tensor, region: Tensor | None = None, smooth: float = 1.0, *, shown_only: bool = False
) -> Tensor:
    """1 - soft Dice, averaged over the foreground classes: B. Both are B x C x H x W, the target in [0, 1].

    Args:
        shown_only: a class that the target does not show in the region costs nothing, whatever is predicted.
    """
    predicted = probabilities(logits)
    if region is not None:
        predicted, target = predicted * region, target * region
    if logits.shape[1] > 1:
        predicted, target = predicted[:, 1:], target[:, 1:]
    overlap = (predicted * target).sum(dim=(2, 3))
    size = predicted.sum(dim=(2, 3)) + target.sum(dim=(2, 3))
    cost = 1 - (2 * overlap + smooth) / (size + smooth)
    if shown_only:
        cost = cost * (target.sum(dim=(2, 3)) > 0)
    return cost.mean(dim=1)


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    weight = weight.to(values.dtype)
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1)


def _where_record(condition: Tensor, yes: Tensor, no: Tensor | float) -> Tensor:
    return torch.where(condition.to(torch.bool).view(-1, 1, 1, 1), yes, no)
