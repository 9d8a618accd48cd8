"""Students that are a site's own: limit cases, values by hand, and that nothing of them reaches the global student."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from dusss_core.build import build_student
from dusss_core.config import PersonalConfig, StudentConfig, TrainingConfig
from dusss_core.config.networks import TEXT_NETWORKS
from dusss_core.errors import UserError
from dusss_core.files import digest_of_tensors, read_tensors, write_tensors
from dusss_core.models.weights import head_names, shared_tensors
from dusss_core.phases import Phase
from dusss_core.training import (
    PersonalSegmenter,
    Segmenter,
    can_train,
    evaluate_student,
    fine_tuned,
    initial_shared,
    student_after,
    with_own_statistics,
)
from dusss_core.training.personal import BESIDE
from dusss_core.training.statistics import estimate_statistics
from tests.dusss_core.objectives.sites import METHODS, changed, config_of, pictures, site

LAMBDA, ALPHA = 0.5, 0.3


def with_personal(config: TrainingConfig, **personal) -> TrainingConfig:
    return TrainingConfig.model_validate({**config.model_dump(), "personal": personal})


def personal_site(config: TrainingConfig, train, shared=None) -> PersonalSegmenter:
    """As `site`, of a study with students of the sites' own."""
    plain = site(config, train)
    trainer = PersonalSegmenter(config, "a", train, train, text_logits=plain.text_logits, text=plain.text)
    trainer.load_shared(shared or initial_shared(config, Phase.SEGMENT))
    return trainer


def elsewhere(tensors: dict, seed: int) -> dict:
    """A global student that other sites have moved."""
    draw = torch.Generator().manual_seed(seed)
    noise = {name: 0.05 * torch.randn(t.shape, generator=draw) for name, t in tensors.items() if t.is_floating_point()}
    return {name: t + noise[name].abs() if name in noise else t for name, t in tensors.items()}


def in_a_federation(trainer: Segmenter, rounds: int = 2) -> Segmenter:
    """Trains; between the rounds the global student is what others have made of it too."""
    for number in range(1, rounds + 1):
        trainer.train_round(number)
        trainer.load_shared(elsewhere(trainer.shared(), number))
    return trainer


def alone(config: TrainingConfig, train, rounds: int = 2) -> Segmenter:
    """The same rounds without a federation."""
    trainer = site(with_personal(config, kind="none"), train)
    for number in range(1, rounds + 1):
        trainer.train_round(number)
    return trainer


def test_a_name_is_short_for_a_kind():
    assert config_of("supervised").personal.kind == "none"
    config = TrainingConfig.model_validate({"personal": "ditto"})
    assert config.personal.kind == "ditto" and config.personal.weight > 0
    with pytest.raises(ValueError, match="personal"):
        TrainingConfig.model_validate({"personal": "other"})


def test_every_kind_that_has_a_student_beside_the_global_one_has_its_class_and_no_other():
    kinds = get_args(PersonalConfig.model_fields["kind"].annotation)
    assert [kind for kind in kinds if PersonalConfig(kind=kind).beside] == list(BESIDE)


def test_a_kind_that_nothing_trains_is_no_plain_federation():
    config = config_of("supervised").model_copy(update={"personal": PersonalConfig.model_construct(kind="other")})
    assert config.personal.beside  # so a site counts twice the steps against its limits
    with pytest.raises(KeyError, match="other"):
        personal_site(config, pictures())


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    @pytest.mark.parametrize("kind", BESIDE)
    def test_the_global_student_is_what_it_is_without_the_sites_own(self, name, kind):
        # of the networks with dropout the slower ones are left to one method
        config, train = config_of(name, network="small_unet" if name == "supervised" else "unet"), pictures()
        without = in_a_federation(site(config, train))
        beside = in_a_federation(personal_site(with_personal(config, kind=kind), train))
        assert digest_of_tensors(without.shared()) == digest_of_tensors(beside.shared())
        own, both = without.private(), beside.private()
        assert digest_of_tensors(own) == digest_of_tensors({key: both[key] for key in own})
        assert both.keys() > own.keys()

    def test_ditto_at_lambda_0_is_training_alone_to_the_last_bit(self, name):
        config, train = config_of(name), pictures()
        trainer = in_a_federation(personal_site(with_personal(config, kind="ditto", weight=0), train))
        lonely = alone(config, train)
        assert digest_of_tensors(trainer.own.shared()) == digest_of_tensors(lonely.shared())
        assert digest_of_tensors(trainer.personal_student()) == digest_of_tensors(lonely.shared())

    def test_apfl_at_alpha_1_is_training_alone_and_at_alpha_0_the_global_student(self, name, monkeypatch):
        # a step of the mixture draws what it drops anew, whatever training alone would have dropped
        monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: x)
        config, train = config_of(name), pictures()
        lonely = alone(config, train)
        trainer = in_a_federation(personal_site(with_personal(config, kind="apfl", alpha=1), train))
        assert digest_of_tensors(trainer.personal_student()) == digest_of_tensors(lonely.shared())
        trainer = in_a_federation(personal_site(with_personal(config, kind="apfl", alpha=0), train))
        now = {key: t for key, t in trainer.model.state_dict().items() if t.is_floating_point()}
        mixed = trainer.personal_student()
        assert digest_of_tensors(now) == digest_of_tensors({key: mixed[key] for key in now})

    def test_fedrep_with_an_empty_head_is_plain_federation(self, name):
        config, train = config_of(name), pictures()
        plain = in_a_federation(site(config, train))
        empty = in_a_federation(personal_site(with_personal(config, kind="fedrep", head="none"), train))
        assert digest_of_tensors(plain.shared()) == digest_of_tensors(empty.shared())
        assert digest_of_tensors(plain.private()) == digest_of_tensors(empty.private())

    def test_fine_tuning_moves_the_student_and_0_steps_do_not(self, name):
        config, train = config_of(name), pictures()
        trainer = site(config, train)
        trainer.train_round(1)
        final = trainer.shared()
        settings = {"text_logits": trainer.text_logits, "text": trainer.text}
        none = fine_tuned(with_personal(config, kind="finetune", steps=0), "a", train, final, **settings)
        assert not changed(final, none)
        tuned = [
            fine_tuned(with_personal(config, kind="finetune", steps=3), "a", train, final, **settings) for _ in (1, 2)
        ]
        assert changed(final, tuned[0]) and not changed(tuned[0], tuned[1])


def test_fine_tuning_goes_on_with_fixed_statistics_where_the_study_ended_with_them():
    train, statistics = pictures(), {}
    for fixed in (False, True):
        config = with_personal(config_of("supervised"), kind="finetune", steps=3)
        config = TrainingConfig.model_validate({**config.model_dump(), "fixed_statistics": fixed})
        final = initial_shared(config, Phase.SEGMENT)
        statistics[fixed] = {
            name for name in changed(final, fine_tuned(config, "a", train, final)) if "running" in name
        }
    assert statistics[False] and not statistics[True]


@pytest.mark.parametrize("kind", [*BESIDE, "fedrep"])
def test_fixed_statistics_are_those_of_a_sites_own_student_too(kind):
    config = with_personal(config_of("mean_teacher"), kind=kind)
    config = TrainingConfig.model_validate({**config.model_dump(), "fixed_statistics": True})
    trainer = personal_site(config, pictures())
    trainer.train_round(1)
    trainer.load_shared(trainer.shared())
    students = [trainer.model, *([trainer.own.student] if trainer.own else [])]
    # as they are used: with APFL the mixture, of statistics too
    between = [{name: value.clone() for name, value in student.state_dict().items()} for student in students]
    trainer.train_round(2)
    for before, student in zip(between, students, strict=True):
        after = changed(before, student.state_dict())
        assert after and not {name for name in after if "running" in name}


@pytest.mark.parametrize("kind", BESIDE)
def test_statistics_of_a_sites_own_student_are_estimated_where_those_of_the_shared_one_are(kind, monkeypatch):
    """On weights that it has then: those that are estimated once more are the same."""
    config = with_personal(config_of("supervised"), kind=kind)
    config = TrainingConfig.model_validate({**config.model_dump(), "batch_statistics": "estimated"})
    trainer = personal_site(config, pictures())
    trainer.train_round(1)
    own = trainer.own.model
    before = {name: value.clone() for name, value in own.state_dict().items()}
    estimate_statistics(config, Phase.SEGMENT, own, trainer.train)
    assert not {name for name in changed(before, own.state_dict()) if "running" in name}


@pytest.mark.parametrize("network", [*get_args(StudentConfig.model_fields["network"].annotation), "encoder"])
def test_every_network_has_a_head_and_a_way_up_that_can_stay(network):
    method = "supervised_with_text" if network in TEXT_NETWORKS else "cct" if network == "small_unet" else "supervised"
    student = build_student(config_of(method, network=network))
    output, decoder = (head_names(student, head) for head in ("output", "decoder"))
    assert output and output < decoder < set(student.state_dict())


def test_the_head_of_a_second_student_stays_too():
    student = build_student(config_of("ucmt"))
    for head, parts in (("output", ("head.",)), ("decoder", ("head.", "up."))):
        expected = {key for key in student.state_dict() if key.removeprefix("second.").startswith(parts)}
        assert head_names(student, head) == expected and any(key.startswith("second.") for key in expected)


@pytest.mark.parametrize("name", ["mean_teacher", "mcnet"])
class TestWhatStays:
    @pytest.mark.parametrize("head", ["output", "decoder"])
    def test_fedreps_head_stays_and_all_else_travels(self, name, head):
        config, train = with_personal(config_of(name), kind="fedrep", head=head), pictures()
        trainer = in_a_federation(personal_site(config, train))
        everything = set(trainer.model.state_dict())
        heads = {key for key in everything if key.startswith("head.") or ".head." in key}
        ups = {key for key in everything if key.startswith("up.") or ".up." in key}
        expected = heads if head == "output" else heads | ups
        assert heads and ups and expected == head_names(trainer.model, head)
        assert set(trainer.shared()) == set(initial_shared(config, Phase.SEGMENT)) == everything - expected
        assert {key.removeprefix("local.") for key in trainer.private() if key.startswith("local.")} == expected

    def test_what_stays_is_in_no_tensor_that_travels(self, name):
        config = config_of(name)
        for personal in ({"kind": "ditto"}, {"kind": "apfl"}, {"kind": "fedrep", "head": "decoder"}):
            trainer = in_a_federation(personal_site(with_personal(config, **personal), pictures()))
            sent = {tensor.numpy().tobytes() for tensor in trainer.shared().values()}
            own = {
                key: tensor
                for key, tensor in trainer.private().items()
                if key.startswith(("personal.", "local.")) and tensor.numel() >= 16 and tensor.float().std() > 0
            }
            assert own
            assert not [key for key, tensor in own.items() if tensor.numpy().tobytes() in sent]

    @pytest.mark.parametrize(
        "personal",
        [
            {"kind": "ditto"},
            {"kind": "fedrep"},
            {"kind": "fedrep", "head": "decoder"},
            {"kind": "apfl", "learn_alpha": True},
        ],
        ids=lambda personal: "-".join(map(str, personal.values())),
    )
    def test_stopping_and_going_on_equals_going_straight_through(self, name, personal, tmp_path):
        config, train = with_personal(config_of(name), **personal), pictures()
        straight = personal_site(config, train)
        straight.train_round(1)
        write_tensors(tmp_path / "private.safetensors", straight.private(), {})
        shared = elsewhere(straight.shared(), 1)
        straight.load_shared(shared)
        before = straight.validate()
        straight.train_round(2)
        resumed = personal_site(config, train)
        resumed.load_private(read_tensors(tmp_path / "private.safetensors")[0])
        resumed.load_shared(shared)
        assert resumed.validate() == before and "personal_dice" in before
        resumed.train_round(2)
        assert digest_of_tensors(straight.shared()) == digest_of_tensors(resumed.shared())
        assert digest_of_tensors(straight.private()) == digest_of_tensors(resumed.private())


@pytest.mark.parametrize("name", ["cct", "mean_teacher"])
def test_a_site_without_labels_has_no_student_of_its_own(name):
    """It would learn from its own guesses; the global student is trained there as ever."""
    train = pictures(labelled=0)
    for kind in ("ditto", "apfl"):
        trainer = in_a_federation(personal_site(with_personal(config_of(name), kind=kind), train))
        assert trainer.own is None and trainer.personal_student() is None and "personal_dice" not in trainer.validate()
    config = with_personal(config_of(name), kind="fedrep")
    assert "personal: fedrep needs some" in can_train(config, Phase.SEGMENT, train)
    assert can_train(with_personal(config_of(name), kind="fedrep", head="none"), Phase.SEGMENT, train) is None
    with pytest.raises(UserError, match="neither labelled pictures nor text-guided masks"):
        config = with_personal(config_of(name), kind="finetune")
        fine_tuned(config, "a", train, initial_shared(config, Phase.SEGMENT))


def test_a_site_whose_sentences_give_masks_has_one():
    config, train = with_personal(config_of("dusss"), kind="ditto"), pictures(labelled=0)
    assert in_a_federation(personal_site(config, train)).personal_student() is not None
    assert can_train(with_personal(config, kind="fedrep"), Phase.SEGMENT, train) is None


@pytest.mark.parametrize("kind", BESIDE)
def test_a_site_whose_first_labels_come_in_the_middle_of_a_study_has_a_student_of_its_own_from_then_on(kind):
    """It starts from the global student that comes next, also in a trainer that another site gave up."""
    config, train = with_personal(config_of("mean_teacher"), kind=kind), pictures()
    before = in_a_federation(personal_site(config, pictures(labelled=0)), rounds=1)
    shared, private = elsewhere(before.shared(), 2), before.private()
    new = PersonalSegmenter(config, "a", train, train)
    Segmenter.load_private(new, private)  # of the global student alone
    new.load_shared(shared)
    new.train_round(2)
    other = in_a_federation(personal_site(config, pictures(n=8, labelled=2)))
    for heir_of in (None, other):
        trainer = PersonalSegmenter(config, "a", train, train, heir_of=heir_of)
        trainer.load_private(private)
        trainer.load_shared(shared)
        trainer.train_round(2)
        assert digest_of_tensors(trainer.own.private()) == digest_of_tensors(new.own.private())


def distance(trainer: PersonalSegmenter) -> float:
    """Largest distance of a number of v from the global student."""
    now = trainer.model.state_dict()
    return max((own - now[key]).abs().max().item() for key, own in trainer.own.student.named_parameters())


def test_a_large_lambda_keeps_the_sites_student_at_the_global_one():
    """AdamW's steps are as long as its learning rate: that is how near it comes."""
    train, found = pictures(), {}
    for weight in (0, 1e4):
        config = config_of("supervised", norm="group", rounds=6, epochs=4)
        trainer = personal_site(with_personal(config, kind="ditto", weight=weight), train)
        w = elsewhere(trainer.shared(), 1)
        for number in range(1, 7):
            trainer.load_shared(w)
            trainer.train_round(number)
        trainer.load_shared(w)
        found[weight] = distance(trainer)
    assert found[1e4] < 2 * config.segment.optimizer.lr < found[0] / 4


@pytest.mark.parametrize("kind", BESIDE)
def test_a_teacher_that_stays_for_a_round_is_the_sites_own_student_as_it_began_the_round(kind):
    trainer = personal_site(with_personal(config_of("fedsemidg"), kind=kind), pictures())
    for number in (1, 2):
        began = {key: value.detach().clone() for key, value in trainer.own.model.named_parameters()}
        trainer.train_round(number)
        assert not changed(began, dict(trainer.own.objective.fixed.model.named_parameters()))
        trainer.load_shared(elsewhere(trainer.shared(), number))


@pytest.mark.parametrize("kind", [*BESIDE, "fedrep"])
def test_with_local_norm_normalisation_layers_stay_too(kind):
    config = TrainingConfig.model_validate({**config_of("supervised").model_dump(), "local_norm": True})
    train = pictures()
    trainer = in_a_federation(personal_site(with_personal(config, kind=kind), train))
    plain = shared_tensors(trainer.model, True, "output" if kind == "fedrep" else "none")
    assert set(trainer.shared()) == set(plain) and not [key for key in plain if "running" in key]
    assert 0 <= trainer.validate()["personal_dice"] <= 1
    if kind != "fedrep":  # validated with statistics that fit it; these too where the site has no validation pictures
        student, validated = trainer.personal_student(), trainer.own.student.state_dict()
        fitted = with_own_statistics(trainer.config, Phase.SEGMENT, student, train)
        assert not changed(validated, fitted)
        made = student_after(trainer.config, trainer.private(), trainer.model.state_dict(), train)
        assert not changed(fitted, made)
        # kept with those that it followed, however often the global student arrives
        trainer.load_shared(trainer.shared())
        assert not changed(student, trainer.personal_student())
        buffers = {name for name, _ in trainer.model.named_buffers()}
        assert changed(student, fitted) and changed(student, fitted) <= buffers


def test_fine_tuning_ends_with_statistics_that_fit_under_fedbn():
    values = {**config_of("supervised").model_dump(), "local_norm": True, "personal": {"kind": "finetune", "steps": 3}}
    config, train = TrainingConfig.model_validate(values), pictures()
    tuned = fine_tuned(config, "a", train, site(config, train).model.state_dict())
    assert not changed(tuned, with_own_statistics(config, Phase.SEGMENT, tuned, train))


def test_apfls_mixture_at_alpha_0_is_the_global_student_with_the_sites_own_layers():
    config = TrainingConfig.model_validate({**config_of("supervised").model_dump(), "local_norm": True})
    trainer = in_a_federation(personal_site(with_personal(config, kind="apfl", alpha=0), pictures()))
    found = trainer.validate()
    assert (found["dice"], found["iou"]) == (found["personal_dice"], found["personal_iou"])


@pytest.mark.parametrize("personal", [*({"kind": kind} for kind in BESIDE), {"kind": "apfl", "alpha": ALPHA}])
def test_what_is_made_of_the_private_state_is_what_the_trainer_validates(personal):
    config, train = with_personal(config_of("supervised"), **personal), pictures()
    trainer = in_a_federation(personal_site(config, train))
    made = student_after(config, trainer.private(), trainer.model.state_dict(), train)
    assert digest_of_tensors(made) == digest_of_tensors(trainer.personal_student())
    assert evaluate_student(config, made, train)["dice"] == pytest.approx(trainer.validate()["personal_dice"])


def test_a_trainer_that_another_site_gave_up_becomes_ones_own():
    """With the state of the one that it is given, whatever the other's was."""
    for kind in (*BESIDE, "fedrep"):
        config, train = with_personal(config_of("mean_teacher"), kind=kind), pictures()
        first, other = in_a_federation(personal_site(config, train)), personal_site(config, pictures(n=8, labelled=2))
        other.train_round(1)
        private, shared = first.private(), first.shared()
        heir = PersonalSegmenter(config, "a", train, train, heir_of=other)
        heir.load_private(private)
        heir.load_shared(shared)
        first.load_shared(shared)
        for trainer in (first, heir):
            trainer.train_round(3)
        assert digest_of_tensors(first.private()) == digest_of_tensors(heir.private())
        assert digest_of_tensors(first.shared()) == digest_of_tensors(heir.shared())
