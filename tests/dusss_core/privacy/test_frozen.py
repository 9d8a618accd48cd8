"""Features that are kept: the same steps as on pictures, and each record's features its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dusss_core.phases import Phase
from dusss_core.privacy.mechanism import reasons_against
from dusss_core.training import initial_shared
from tests.dusss_core.conftest import make_split
from tests.dusss_core.privacy.conftest import private_config, released_sum, segmenter

ENCODER = {"encoder": "test_resnet", "width": 4, "norm": "group"}
TWO_LAYERS = {**ENCODER, "hidden": 4}
UNET = {"width": 4, "norm": "group"}


def head_config(clip=1e6, student=ENCODER, **privacy):
    return private_config(
        privacy={"clip": clip, "student": "head", "keep_features": True, **privacy},
        method={"preset": "supervised"},
        student=student,
    )


@pytest.mark.parametrize("student", [ENCODER, TWO_LAYERS, UNET], ids=["encoder", "two layers", "unet"])
@pytest.mark.parametrize("views", [1, 2])
def test_a_step_on_kept_features_is_that_on_pictures(student, views):
    split = make_split(n=4, labelled=3)
    plain, kept = (
        released_sum(segmenter(head_config(student=student, keep_features=keep, views=views), split))
        for keep in (False, True)
    )
    assert plain.norm() > 0
    assert (plain - kept).norm() < 0.01 * plain.norm()


@pytest.mark.parametrize("student", [ENCODER, TWO_LAYERS], ids=["encoder", "two layers"])
def test_a_record_whose_features_are_kept_changes_the_sum_by_at_most_c(student):
    split, clip = make_split(n=5, labelled=5), 1e-3
    split.images[0], split.masks[1] = 255, 1
    whole = released_sum(segmenter(head_config(clip, student), split))
    for record in range(5):
        rest = split.select(np.delete(np.arange(5), record))
        change = (whole - released_sum(segmenter(head_config(clip, student), rest))).norm().item() / clip
        assert 0.9 < change <= 1 + 1e-3


def test_features_are_made_once_and_anew_when_the_frozen_part_changes():
    config, split = head_config(), make_split(n=4, labelled=4)
    trainer, seen = segmenter(config, split), []
    trainer.student.encoder.register_forward_hook(lambda *_: seen.append(1))
    released_sum(trainer)
    released_sum(trainer, round=2)
    assert len(seen) == 4
    global_model = initial_shared(config, Phase.SEGMENT)
    trainer.load_shared(
        {name: value + value.is_floating_point() * name.startswith("head") for name, value in global_model.items()}
    )
    before = released_sum(trainer)
    assert len(seen) == 4
    trainer.load_shared({name: value * (1 + 0.5 * name.startswith("encoder")) for name, value in global_model.items()})
    after = released_sum(trainer)
    assert len(seen) == 8 and not torch.allclose(before, after)


def test_what_is_kept_is_weighed():
    trainer = segmenter(head_config(), make_split(n=4, labelled=4))
    before = sum(tensor.nbytes for tensor in trainer.kept())
    released_sum(trainer)
    assert sum(tensor.nbytes for tensor in trainer.kept()) > before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"privacy": {"student": "decoder"}}, "set privacy.student: head"),
        ({"method": {"preset": "mean_teacher"}}, "keep_features: false"),
        ({"method": {"preset": "supervised", "objective": "cct"}}, "keep_features: false"),
    ],
)
def test_where_more_than_the_head_learns_kept_features_are_refused(changes, told):
    privacy = {"student": "head", "keep_features": True, **changes.get("privacy", {})}
    method = changes.get("method", {"preset": "supervised"})
    config = private_config(privacy=privacy, method=method, student=UNET)
    assert any(told in reason for reason in reasons_against(config, Phase.SEGMENT, 100))
    assert reasons_against(head_config(), Phase.SEGMENT, 100) == []
