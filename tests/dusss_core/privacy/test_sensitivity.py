"""One record more or less changes the sum of a step by at most C (2 C with groups): the production step, without its
noise, on data built to break it. Wrong forms that were once thought right are planted, and must be caught."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dusss_core.errors import UserError
from dusss_core.objectives import TABLE, objective_of
from dusss_core.objectives.fixmatch import FixMatch
from dusss_core.privacy.pretrain import PrivatePretrainer
from dusss_core.privacy.segment import PrivateSegmenter
from dusss_core.records import Split
from tests.dusss_core.conftest import SENTENCES, make_split
from tests.dusss_core.objectives.sites import network_for
from tests.dusss_core.privacy.conftest import Fixed, pretrainer, private_config, released_sum, segmenter

ROUNDING = 1e-3


def adversarial(labelled, other, seed=0):
    """One picture, again and again: `labelled` records with a mask, the first of them its complement."""
    n = labelled + other
    rng = np.random.default_rng(seed)
    images = np.repeat(rng.integers(0, 255, (1, 1, 32, 32), dtype=np.uint8), n, 0)
    masks = np.zeros((n, 32, 32), np.uint8)
    masks[:, 8:] = 1
    masks[0] = 1 - masks[0]
    flags = np.arange(n) < labelled
    ids = tuple(f"r{i}" for i in range(n))
    return Split(images, masks, flags, np.ones(n, bool), np.arange(n) % 2, SENTENCES, ids)


def without(split, record):
    return split.select(np.delete(np.arange(len(split)), record))


def largest_change(build, split, records, randomness=lambda kept: None, round=1):
    """The largest change of the sum when one of `records` leaves."""
    everybody = np.arange(len(split))
    whole = released_sum(build(split, everybody), randomness(everybody), round)
    changes = []
    for record in records:
        kept = np.delete(everybody, record)
        rest = released_sum(build(without(split, record), kept), randomness(kept), round)
        changes.append((whole - rest).norm().item())
    return max(changes)


# ---- segmentation ----


def segment_config(clip, **changes):
    return private_config(privacy={"clip": clip}, segment={"dice": False, "rampup": 0, "strong": 0}, **changes)


def own_norm(split, config):
    """Of the gradient of the last record alone."""
    config = config.model_copy(update={"privacy": config.privacy.model_copy(update={"clip": 1e9})})
    return released_sum(segmenter(config, split.select(np.array([len(split) - 1])))).norm().item()


ENCODER = {"student": {"encoder": "test_resnet", "width": 4, "norm": "group"}}
"""With batch norm on the way down."""


@pytest.mark.parametrize(("clip", "student"), [(1e-3, {}), (0.1, {}), (1e-3, ENCODER)])
def test_a_record_of_either_kind_changes_the_sum_by_at_most_c(clip, student):
    split = make_split(n=8, labelled=4, with_text=6)
    split.images[0], split.masks[1] = 255, 1
    split.images[7] = np.random.default_rng(1).integers(0, 2, (1, 32, 32)) * 255
    logits = np.random.default_rng(2).choice([-20, 20], (8, 1, 32, 32)).astype(np.float16)
    logits[6:] = np.nan

    def build(part, kept):
        return segmenter(segment_config(clip, **student), part, logits[kept])

    # nearly reached: otherwise nothing was clipped and nothing was tested
    assert 0.9 < largest_change(build, split, range(8)) / clip <= 1 + ROUNDING


class SubsetMeans(PrivateSegmenter):
    """Planted: CE[labelled].mean() + CE[unlabelled].mean(), whose rows are then clipped."""

    def loss_of(self, unit, share_done):
        loss = super().loss_of(unit, share_done)
        kind = self.labelled if unit[0] in self.labelled else self.unlabelled
        return loss * len(self.train) / len(kind)


class MergedRows(PrivateSegmenter):
    """Planted: two forward passes, one backward, so that row i is labelled record i plus unlabelled record i."""

    def units(self, drawn):
        pairs = zip(drawn[np.isin(drawn, self.labelled)], drawn[np.isin(drawn, self.unlabelled)], strict=False)
        return [np.array(pair) for pair in pairs]


@pytest.mark.parametrize(("kind", "worst"), [(PrivateSegmenter, (0.9, 1 + ROUNDING)), (SubsetMeans, (1.3, 2))])
def test_means_over_the_labelled_and_the_unlabelled_records_of_a_draw_are_caught(kind, worst):
    split = adversarial(labelled=8, other=16)
    config = segment_config(1.0)
    # without the first labelled record, the others' rows of the wrong form are just as long as C
    clip = own_norm(split.select(np.arange(8)), config) * (23 / 7 if kind is SubsetMeans else 0.9)
    change = largest_change(lambda part, kept: segmenter(segment_config(clip), part, kind=kind), split, [0]) / clip
    assert worst[0] < change < worst[1]


@pytest.mark.parametrize(("kind", "worst"), [(PrivateSegmenter, (0.9, 1 + ROUNDING)), (MergedRows, (1.5, 99))])
def test_rows_that_hold_two_records_are_caught(kind, worst):
    n = 5
    split = adversarial(labelled=n, other=n)
    for i in range(n):  # ever smaller masks; the unlabelled record's text-guided mask is the complement
        split.masks[i] = split.masks[n + i] = 0
        split.masks[i, : 30 - 6 * i] = split.masks[n + i, : 30 - 6 * i] = 1
    logits = (20 - 40 * split.masks[:, None].astype(np.float16)).astype(np.float16)
    config = segment_config(0.01, method={"teacher": False})

    def build(part, kept):
        trainer = segmenter(config, part, logits[kept], kind=kind)
        for parameter in trainer.student.head.parameters():  # all pixels at one half: a pair's gradients nearly cancel
            parameter.data.zero_()
        return trainer

    change = largest_change(build, split, [n]) / 0.01
    assert worst[0] < change < worst[1]


APART = [name for name in TABLE if not objective_of(private_config(method={"objective": name})).coupled]
"""Objectives that say that their records stand alone."""


def objective_config(name, clip, network="unet"):
    """Of a study of two rounds of one step: in the second, unlabelled pictures are heard in every method."""
    student = {"width": 4, "norm": "group", "network": network_for({"objective": name}, network)}
    segment = {"rounds": 2, "rampup": 0, "strong": 0}
    return private_config(privacy={"clip": clip}, method={"objective": name}, student=student, segment=segment)


@pytest.mark.parametrize("labelled", [1, 4])
@pytest.mark.parametrize("name", APART)
def test_a_record_of_every_objective_changes_the_sum_by_at_most_c(name, labelled):
    """With one labelled record, whether there is any at all changes with it."""
    split, clip = make_split(n=6, labelled=labelled), 1e-6
    split.images[0], split.images[5] = 255, np.random.default_rng(1).integers(0, 2, (1, 32, 32)) * 255
    config = objective_config(name, clip)
    change = largest_change(lambda part, kept: segmenter(config, part), split, range(6), round=2) / clip
    assert 0.9 < change <= 1 + ROUNDING


class AllBut(Fixed):
    """Everybody is drawn but one record."""

    def __init__(self, record):
        super().__init__()
        self.record = record

    def poisson_draw(self, count, rate):
        return np.arange(count) != self.record


class Remembering(FixMatch):
    """Planted: what a record looked like weighs on those of later steps."""

    seen = 0.0

    def losses(self, batch, draw, share_done):
        loss, figures = super().losses(batch, draw, share_done)
        self.now = self.host.pictures(np.concatenate(batch)).mean()
        return loss + self.seen, figures

    def after_step(self, step, share_done):
        self.seen = self.now


def loss_after_others(config, split, record, objective=None):
    """Of one record alone, after a step of the others in which no weight moved."""
    trainer = segmenter(config, split)
    if objective is not None:
        trainer.objective = objective(trainer)
    trainer.randomness, trainer.optimizer.step = AllBut(record), lambda: None
    trainer.train_round(1)
    loss = trainer.loss_of(np.array([record]), 1.0)
    return None if loss is None else loss.item()


@pytest.mark.parametrize(("name", "planted"), [*((name, None) for name in APART), ("fixmatch", Remembering)])
def test_what_a_later_step_learns_from_a_record_does_not_depend_on_those_of_an_earlier_one(name, planted):
    """But by the weights, which carry noise: a memory of pictures would be of pictures that no charge has paid for."""
    config, split = objective_config(name, 1e-6), make_split(n=6, labelled=3)
    for record in (0, 5):
        others = np.arange(6) != record
        images = np.where(others[:, None, None, None], 255 - split.images, split.images)
        masks = np.where(others[:, None, None], 1 - split.masks, split.masks)
        changed = replace(split, images=images, masks=masks)
        found = [loss_after_others(config, part, record, planted) for part in (split, changed)]
        assert (found[0] == found[1]) == (planted is None)


class OneStream(PrivateSegmenter):
    """Planted: layers that draw go on where the record before left off."""

    def loss_of(self, unit, share_done):
        labelled, other = (unit[of_kind[unit]] for of_kind in self._of_kind)
        return self.losses((labelled, other), self.randomness.generator(), share_done)[0]


@pytest.mark.parametrize(("kind", "worst"), [(PrivateSegmenter, (0.9, 1 + ROUNDING)), (OneStream, (1.1, 99))])
def test_dropout_of_a_teacher_that_follows_from_the_records_before_is_caught(kind, worst):
    config, split = objective_config("mean_teacher_mse", 1e-6, "small_unet"), make_split(n=5, labelled=0)
    change = largest_change(lambda part, kept: segmenter(config, part, kind=kind), split, [0], round=2) / 1e-6
    assert worst[0] < change < worst[1]


class Pasted(PrivateSegmenter):
    """Planted: two records of either kind are clipped as one, the fewest that copy-paste can mix."""

    def units(self, drawn):
        pairs = (drawn[np.isin(drawn, kind)] for kind in self.kinds())
        labelled, other = (pair[: len(pair) // 2 * 2].reshape(-1, 2) for pair in pairs)
        return [np.concatenate(four) for four in zip(labelled, other, strict=False)]


def test_copy_paste_is_refused_because_it_would_break_the_bound(monkeypatch):
    split, clip = adversarial(labelled=6, other=6), 1e-6
    # one picture; without the first record, equal masks meet where unlike ones met before
    split.masks[:6] = np.array([1, 0, 0, 1, 1, 0])[:, None, None]
    config = objective_config("bcp", clip)
    with pytest.raises(UserError, match="bcp mixes the records"):
        segmenter(config, split)
    monkeypatch.setattr(objective_of(config), "coupled", False)

    def build(part, kept):
        trainer = segmenter(config, part, kind=Pasted)
        for parameter in trainer.student.head.parameters():  # all pixels at one half
            parameter.data.zero_()
        return trainer

    assert largest_change(build, split, [0], round=2) / clip > 1.5


def test_a_record_with_many_views_still_counts_as_one():
    split = make_split(n=4, labelled=2)

    def build(views):
        config = private_config(privacy={"clip": 1e-3, "views": views})
        return lambda part, kept: segmenter(config, part)

    assert largest_change(build(3), split, range(4)) <= 1e-3 * (1 + ROUNDING)


def test_a_record_without_a_target_leaves_the_sum_as_it_is():
    split = make_split(n=6, labelled=3, with_text=5)
    config = private_config(method={"preset": "supervised"})
    assert largest_change(lambda part, kept: segmenter(config, part), split, [3, 5]) == 0


# ---- pretraining ----


def pretrain_config(kind, clip, **method):
    return private_config(
        privacy={"clip": clip, "pretrain": kind, "groups": 3},
        pretrain={"temperature": 0.1, "flip": False, "rampup": 0, "weight_consistency": 1e3},
        method=method,
    )


def test_with_public_negatives_a_record_changes_the_sum_by_at_most_c():
    split = make_split(n=10, labelled=4, with_text=9)
    split.images[0] = 255
    config = pretrain_config("public_negatives", 1e-3)
    change = largest_change(lambda part, kept: pretrainer(config, part), split, [0, 3, 8, 9]) / 1e-3
    assert 0.9 < change <= 1 + ROUNDING


class InBatchNegatives(PrivatePretrainer):
    """Planted: the negatives are the drawn records themselves."""

    def _encode_public(self):
        self.vlm.eval()
        drawn = [self._look((np.array([], int), np.array([i])), Fixed().generator()) for i in range(len(self.train))]
        images, texts = (torch.cat([getattr(seen, name).semantic for seen in drawn]) for name in ("image", "text"))
        bank = super()._encode_public()
        return bank._replace(image=bank.image._replace(semantic=images), text=bank.text._replace(semantic=texts))

    def _other_captions(self, seen):
        return None


@pytest.mark.parametrize(("kind", "worst"), [(PrivatePretrainer, (0.9, 1 + ROUNDING)), (InBatchNegatives, (1.5, 99))])
def test_negatives_from_the_draw_are_caught(kind, worst):
    split = adversarial(labelled=0, other=8)
    split.images[0] = np.arange(32, dtype=np.uint8) * 8
    split.sentence[:] = np.arange(8) > 0
    config = pretrain_config("public_negatives", 1e-6, sss=False, dcl=False, ltg=False)

    def build(part, kept):
        trainer = pretrainer(config, part, kind=kind)
        # the temperature alone: among copies of itself a record has nothing to say about it, beside a stranger it has
        trainer.vlm.requires_grad_(False).log_scale.requires_grad_(True)
        return trainer

    assert worst[0] < largest_change(build, split, [0]) / 1e-6 < worst[1]


class ConsistentWhereThereAreMasks(PrivatePretrainer):
    """Planted: the only record with a mask decides what all others learn from."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.consistent = bool(len(self.labelled))


@pytest.mark.parametrize(
    ("kind", "worst"), [(PrivatePretrainer, (0.9, 1 + ROUNDING)), (ConsistentWhereThereAreMasks, (1.5, 99))]
)
def test_a_loss_that_depends_on_whether_anybody_has_a_mask_is_caught(kind, worst):
    config = pretrain_config("public_negatives", 1e-3)
    change = largest_change(lambda part, kept: pretrainer(config, part, kind=kind), make_split(n=8, labelled=1), [0])
    assert worst[0] < change / 1e-3 < worst[1]


class EvenGroups(PrivatePretrainer):
    """Planted: groups are dealt in turn, so that one record more moves all that come after it."""

    def units(self, drawn):
        return [drawn[k :: self.config.privacy.groups] for k in range(self.config.privacy.groups)]


@pytest.mark.parametrize(("kind", "worst"), [(PrivatePretrainer, (0.5, 2 + ROUNDING)), (EvenGroups, (2.1, 99))])
def test_with_groups_a_record_changes_the_sum_by_at_most_two_c(kind, worst):
    rng = np.random.default_rng(0)
    split = make_split(n=18, labelled=9)
    split.images[:] = rng.integers(0, 2, (18, 1, 1, 1)) * 200 + rng.integers(0, 50, split.images.shape)
    clip = 1e-3
    config = pretrain_config("groups", clip)
    config.privacy.groups = 9 if kind is EvenGroups else 3
    groups = rng.integers(0, 3, len(split))
    change = largest_change(
        lambda part, kept: pretrainer(config, part, kind=kind), split, [0, 5, 17], lambda kept: Fixed(groups[kept])
    )
    assert worst[0] < change / clip < worst[1]
