"""What every method of step 1 promises, whatever it learns: a new line in TABLE is held to all of it at once."""

from __future__ import annotations

import math
import typing

import numpy as np
import pytest
import torch

from dusss_core.config import PretrainingName
from dusss_core.files import digest_of_tensors, read_tensors, write_tensors
from dusss_core.phases import Phase
from dusss_core.pretraining import TABLE, pretraining_of
from dusss_core.pretraining.method import PretrainingMethod
from dusss_core.privacy.mechanism import why_not
from dusss_core.training import initial_shared, text_guided_masks
from tests.dusss_core.conftest import assert_federation_of_one_is_plain, make_split
from tests.dusss_core.pretraining.batches import METHODS, config_of, look, trainer_of

OTHERS = [name for name in METHODS if name != "dusss"]


def test_the_settings_know_every_method_of_the_table_and_no_other():
    assert set(typing.get_args(PretrainingName)) == set(TABLE)


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_it_is_found_and_its_losses_teach_the_towers(self, name, bank):
        trainer = trainer_of(name, bank)
        assert isinstance(trainer.method, PretrainingMethod)
        trainer.model.zero_grad()
        sum(trainer.method.contrasts(look(trainer)).values()).backward()
        taught = {key.split(".")[0] for key, value in trainer.model.named_parameters() if value.grad is not None}
        assert {"image", "text"} <= taught
        if trainer.vlm.pretraining is not None:
            untaught = [key for key, value in trainer.vlm.pretraining.named_parameters() if value.grad is None]
            assert not untaught

    def test_a_federation_of_one_is_plain_training(self, name, bank):
        straight, federated = trainer_of(name, bank), trainer_of(name, bank)
        assert_federation_of_one_is_plain(straight, federated)

    def test_stopping_and_going_on_equals_going_straight_through(self, name, bank, tmp_path):
        straight = trainer_of(name, bank)
        straight.train_round(1)
        write_tensors(tmp_path / "private.safetensors", straight.private(), {})
        shared = straight.shared()
        straight.train_round(2)
        resumed = trainer_of(name, bank)
        resumed.load_private(read_tensors(tmp_path / "private.safetensors")[0])
        resumed.load_shared(shared)
        resumed.train_round(2)
        assert digest_of_tensors(straight.shared()) == digest_of_tensors(resumed.shared())
        assert digest_of_tensors(straight.private()) == digest_of_tensors(resumed.private())

    def test_what_it_trains_travels_and_the_rest_starts_as_without_it(self, name, bank):
        trainer, clip = trainer_of(name, bank), trainer_of("dusss", bank, preset="clip")
        own = trainer.shared()
        assert set(own) == set(initial_shared(trainer.config, Phase.PRETRAIN))
        rest = {key: value for key, value in own.items() if not key.startswith("pretraining.")}
        assert digest_of_tensors(rest) == digest_of_tensors(clip.shared())
        more = {f"pretraining.{key}" for key, _ in trainer.vlm.pretraining.named_parameters()} if name in OTHERS else {}
        assert set(own) - set(rest) == set(more)

    def test_equal_seeds_are_equal_runs_whatever_else_draws_random_numbers(self, name, bank):
        digests = []
        for draws in (0, 3):
            trainer = trainer_of(name, bank)
            torch.rand(draws)
            np.random.default_rng().random(draws)
            trainer.train_round(2)
            digests.append(digest_of_tensors(trainer.shared()))
        assert digests[0] == digests[1]

    def test_what_it_trains_is_not_asked_for_masks(self, name, bank):
        trainer = trainer_of(name, bank)
        shared, split = trainer.shared(), make_split()
        broken = {key: value * math.nan if key.startswith("pretraining.") else value for key, value in shared.items()}
        masks = [text_guided_masks(trainer.config, tensors, split, bank) for tensors in (shared, broken)]
        assert np.isfinite(masks[0]).all() and np.array_equal(*masks)

    @pytest.mark.parametrize("classes", [1, 3])
    @pytest.mark.parametrize("labelled", [0, 4, 12])
    def test_any_site_with_sentences_trains(self, name, labelled, classes, bank):
        split = make_split(labelled=labelled)
        trainer = trainer_of(name, bank, split, image={"size": 32, "classes": classes})
        before = trainer.shared()
        for number in (1, 2):
            assert math.isfinite(trainer.train_round(number)["loss"])
        after = trainer.shared()
        assert any(not torch.equal(after[key], before[key]) for key in before if key.startswith("image."))
        assert all(bool(value.isfinite().all()) for value in after.values())

    def test_losses_are_float32_under_autocast(self, name, bank):
        trainer = trainer_of(name, bank)
        trainer.runtime = trainer.runtime._replace(amp=True)
        parts = trainer.method.contrasts(look(trainer))
        assert {value.dtype for value in parts.values()} == {torch.float32}
        assert math.isfinite(trainer.train_round(1)["loss"])

    def test_places_in_the_embedding_change_nothing_that_it_needs(self, name, bank):
        vlm = {"image_encoder": "test_resnet", "dim": 16, "decoder_width": 16, "patch_stride": 8, "cells": 2}
        assert math.isfinite(trainer_of(name, bank, vlm=vlm).train_round(1)["loss"])


@pytest.mark.parametrize("name", OTHERS)
class TestEveryOtherMethod:
    def test_it_has_none_of_the_switches_of_dusss_and_the_decoder_may_learn_by_eq_11_alone(self, name, bank):
        method = config_of(name).method
        assert not (method.sss or method.dcl or method.ltg) and method.grounding_supervision
        for wrong, said in (({"sss": True}, "no sss"), ({"dcl": True}, "no dcl"), ({"negatives": "site"}, "no neg")):
            with pytest.raises(ValueError, match=f"pretraining: {name} has {said}"):
                config_of(name, method=wrong)
        paper = {"preset": "paper", "method": {"ltg": True}}
        assert "ltg" in trainer_of(name, bank, **paper).train_round(1)
        assert "ltg" not in trainer_of(name, bank).train_round(1)

    def test_it_mixes_records_and_is_refused_where_training_is_private(self, name):
        config = config_of(name, student={"width": 4, "norm": "group"})
        assert pretraining_of(config).coupled
        assert f"method.pretraining: {name} mixes the records" in why_not(config, Phase.PRETRAIN, 2000)
        assert why_not(config, Phase.SEGMENT, 2000) is None
