"""What every method of step 2 promises, whatever it learns: a new line in TABLE is held to all of it at once.

"Not at weight 0": with BatchNorm the unlabelled pictures of a batch always move the statistics of the labelled ones, as
in the published codes, so the promise is about gradients, and is looked at with GroupNorm. A method that mixes pictures
(`coupled`) shows parts of unlabelled ones beside labelled ones even then; it learns nothing from what they are called.
"""

from __future__ import annotations

import math
import typing

import numpy as np
import pytest
import torch

from dusss_core.config import ObjectiveName, StudentConfig, TrainingConfig
from dusss_core.files import digest_of_tensors, read_tensors, write_tensors
from dusss_core.losses import cosine_lr
from dusss_core.models.ema import Teacher
from dusss_core.objectives import TABLE, misfit, objective_of, with_objective
from dusss_core.objectives.objective import Objective
from dusss_core.phases import Phase
from dusss_core.privacy.mechanism import reasons_against
from dusss_core.training import can_train, initial_shared
from tests.dusss_core.conftest import assert_federation_of_one_is_plain
from tests.dusss_core.objectives.sites import (
    METHODS,
    changed,
    config_of,
    draw,
    newcomer,
    parts,
    pictures,
    site,
    trained,
    with_other_unlabelled_pictures,
    without_sentences,
)


def test_the_settings_know_every_method_of_the_table_and_no_other():
    assert set(typing.get_args(ObjectiveName)) == set(TABLE)


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_it_is_found_and_says_what_it_works_on(self, name):
        kind = objective_of(config_of(name))
        assert issubclass(kind, Objective)
        assert kind.networks and kind.networks <= {
            *typing.get_args(StudentConfig.model_fields["network"].annotation),
            "encoder",
        }

    def test_unlabelled_pictures_change_the_weights_where_they_weigh_and_not_where_they_do_not(self, name):
        config, train = config_of(name, norm="group"), pictures()
        other, kind = with_other_unlabelled_pictures(train), objective_of(config)
        learns = kind.learns_from(config) != "none"
        assert bool(changed(trained(config, train), trained(config, other))) == learns
        if not kind.coupled:
            config = config_of(name, norm="group", weight_semi=0)
            assert not changed(trained(config, train), trained(config, other))

    def test_a_federation_of_one_is_plain_training(self, name):
        config, train = config_of(name), pictures()
        straight, federated = site(config, train), site(config, train)
        assert_federation_of_one_is_plain(straight, federated)

    def test_stopping_and_going_on_equals_going_straight_through(self, name, tmp_path):
        config, train = config_of(name), pictures()
        straight = site(config, train)
        straight.train_round(1)
        write_tensors(tmp_path / "private.safetensors", straight.private(), {})
        shared = straight.shared()
        straight.train_round(2)
        resumed = newcomer(config, train)  # in a new process the state is there before a student is
        assert all(isinstance(tensor, torch.Tensor) for tensor in resumed.kept())
        resumed.load_private(read_tensors(tmp_path / "private.safetensors")[0])
        resumed.load_shared(shared)
        resumed.train_round(2)
        assert digest_of_tensors(straight.shared()) == digest_of_tensors(resumed.shared())
        assert digest_of_tensors(straight.private()) == digest_of_tensors(resumed.private())

    def test_fixed_batch_statistics_stay_as_they_came_and_the_rest_is_trained(self, name):
        config = TrainingConfig.model_validate({**config_of(name).model_dump(), "fixed_statistics": True})
        trainer = site(config, pictures())
        trainer.train_round(1)
        between = trainer.shared()
        trainer.train_round(2)
        after = changed(between, trainer.shared())
        buffers = {key for key, _ in trainer.model.named_buffers()}
        assert buffers & set(between) and not buffers & after
        assert {key for key, _ in trainer.model.named_parameters() if key.endswith("weight")} & after

    def test_what_it_keeps_at_the_site_is_not_in_what_travels(self, name):
        config = config_of(name)
        trainer = site(config, pictures())
        for number in (1, 2):
            trainer.train_round(number)
        shared, own = trainer.shared(), trainer.objective.state()
        assert set(shared) == set(initial_shared(config, Phase.SEGMENT))
        assert {f"objective.{key}" for key in own} <= set(trainer.private())
        weights = {key: tensor for key, tensor in own.items() if tensor.ndim == 4}
        assert not {tensor.numpy().tobytes() for tensor in weights.values()} & {
            tensor.numpy().tobytes() for tensor in shared.values()
        }

    def test_a_batch_without_one_kind_has_a_finite_loss(self, name):
        config = config_of(name)
        trainer = site(config, pictures())
        labelled, other, none = parts(trainer)
        assert math.isfinite(trainer.losses((labelled, none), draw(), 0.9)[0].item())
        if len(other) and objective_of(config).alone(config) is not None:
            assert math.isfinite(trainer.losses((none, other), draw(), 0.9)[0].item())

    @pytest.mark.parametrize("labelled", [0, 12])
    def test_a_site_with_one_kind_of_pictures_trains_or_says_why_not(self, name, labelled):
        config, train = config_of(name), pictures(labelled=labelled)
        kind, reason = objective_of(config), can_train(config, Phase.SEGMENT, train)
        if not labelled and (kind.alone(config) is None or kind.learns_from(config) == "none"):
            assert "the site has no labelled pictures" in reason
            return
        assert reason is None
        trainer = site(config, train)
        before = trainer.shared()
        for number in (1, 2):
            assert math.isfinite(trainer.train_round(number)["loss"])
        assert changed(before, trainer.shared())

    @pytest.mark.parametrize("labelled", [0, 4])
    def test_a_site_without_sentences_trains_from_what_its_pictures_teach(self, name, labelled):
        config, train = config_of(name), without_sentences(pictures(labelled=labelled))
        kind, reason = objective_of(config), can_train(config, Phase.SEGMENT, train)
        if kind.text == "inference":
            assert "the site has no sentences" in reason and name in reason
            return
        if not labelled and (kind.alone(config) is None or kind.learns_from(config) != "all"):
            assert "the site has no labelled pictures" in reason
            return
        assert reason is None
        trainer = site(config, train)
        assert trainer.text_logits is None and not trainer.guided.any()
        assert len(trainer.unlabelled) == (12 - labelled if kind.learns_from(config) == "all" else 0)
        before = trainer.shared()
        for number in (1, 2):
            assert math.isfinite(trainer.train_round(number)["loss"])
        assert changed(before, trainer.shared())

    def test_private_training_is_refused_with_the_reason_where_records_meet(self, name):
        config = config_of(name, norm="group")
        reasons = reasons_against(config, Phase.SEGMENT, 1000)
        met = [reason for reason in reasons if reason.startswith(f"method.objective: {config.method.objective} ")]
        if not objective_of(config).coupled:
            assert not met
            return
        [reason] = met
        offered = reason.rpartition("choose one of ")[2].split(", ")
        others = {other: with_objective(config, other) for other in TABLE}
        apart = {name for name, other in others.items() if not (objective_of(other).coupled or misfit(other))}
        assert set(offered) == apart and config.method.objective not in offered

    def test_equal_seeds_are_equal_runs_whatever_else_draws_random_numbers(self, name):
        config, train = config_of(name, network="small_unet", batch=4), pictures(n=4, labelled=2)
        digests = []
        for draws in (0, 3):
            trainer = site(config, train)
            torch.rand(draws)
            np.random.default_rng().random(draws)
            trainer.train_round(2)  # the second, in which unlabelled pictures are heard in every method
            digests.append(digest_of_tensors(trainer.shared()))
        assert digests[0] == digests[1]

    def test_three_classes_are_learnt(self, name):
        config, train = config_of(name, classes=3), pictures(classes=3)
        assert set(np.unique(train.masks)) == {0, 1, 2}
        trainer = site(config, train)
        before = trainer.shared()
        for number in (1, 2):
            assert math.isfinite(trainer.train_round(number)["loss"])
        after = trainer.shared()
        assert all(bool(tensor.isfinite().all()) for tensor in after.values())
        assert {key.split(".")[0] for key in changed(before, after)} == {key.split(".")[0] for key in before}

    def test_losses_are_float32_under_autocast(self, name):
        config = config_of(name)
        config.runtime.amp = True
        trainer = site(config, pictures())
        [batch] = trainer.batches(1, draw())
        loss, _ = trainer.losses(batch, draw(), 0.9)
        assert loss.dtype == torch.float32 and math.isfinite(loss.item())
        assert math.isfinite(trainer.train_round(1)["loss"])

    def test_no_gradient_reaches_a_teacher(self, name):
        trainer = site(config_of(name), pictures())
        for number in (1, 2):
            trainer.train_round(number)
        for teacher in [held for held in vars(trainer.objective).values() if isinstance(held, Teacher)]:
            assert not any(value.requires_grad for value in teacher.model.parameters())
            assert all(value.grad is None for value in teacher.model.parameters())


ALONE = [name for name in METHODS if can_train(config_of(name), Phase.SEGMENT, pictures(labelled=0)) is None]
"""Methods in which a site without labels takes part."""


@pytest.mark.parametrize("name", ALONE)
class TestASiteWithoutLabels:
    def test_it_hands_on_what_it_says_and_trains_the_rest(self, name):
        config, train = config_of(name), pictures(labelled=0)
        kept, trainer = objective_of(config).alone(config), site(config, train)
        assert trainer.handed_on == kept and site(config, pictures()).handed_on == ()
        parameters = {key for key, _ in trainer.model.named_parameters()}
        moved = changed(initial_shared(config, Phase.SEGMENT), trained(config, train)) & parameters
        assert not {key for key in moved if key.startswith(kept)}
        assert all(any(key.startswith(prefix) for key in parameters) for prefix in kept)
        # of every other part of the network something has moved
        assert {key.split(".")[0] for key in moved} == {
            key.split(".")[0] for key in parameters if not key.startswith(kept)
        }

    def test_it_returns_all_that_it_got_where_unlabelled_pictures_have_no_weight(self, name):
        optimizer = {"lr": 1e-2, "weight_decay": 0.1}
        config, train = config_of(name, weight_semi=0, optimizer=optimizer), pictures(labelled=0)
        assert not changed(initial_shared(config, Phase.SEGMENT), trained(config, train))

    def test_it_starts_as_slowly_as_its_targets_are_young(self, name):
        """AdamW divides the weight of a loss out again: without `pace` such a site would run after targets that know
        nothing at full speed."""
        optimizer = {"lr": 1e-2, "weight_decay": 0}
        config = config_of(name, norm="group", rounds=20, batch=12, optimizer=optimizer)
        largest, weight = {}, {}
        for labelled in (0, 12):
            trainer = site(config, pictures(labelled=labelled))
            before = trainer.shared()
            trainer.train_round(2)
            largest[labelled] = max((value - before[key]).abs().max().item() for key, value in trainer.shared().items())
            weight[labelled] = trainer.objective.unlabelled_weight(1 / 20)
        assert 0 < weight[0] <= 1
        assert largest[12] == pytest.approx(cosine_lr(1, 20, config.segment.optimizer), rel=0.05)
        assert largest[0] / largest[12] == pytest.approx(weight[0], rel=0.05)
