"""Training at one site: repeats exactly, keeps what is private, and every switch of the method reaches the student."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dusss_core.build import build_vlm
from dusss_core.errors import UserError
from dusss_core.files import digest_of_tensors, read_tensors, write_tensors
from dusss_core.inference import to_input
from dusss_core.losses import pseudo_label_loss, supervised_loss
from dusss_core.losses.schedules import cosine_lr
from dusss_core.models.weights import load_tensors
from dusss_core.phases import Phase
from dusss_core.sampling import two_stream_batches
from dusss_core.training import (
    Pretrainer,
    Segmenter,
    can_train,
    evaluate_logits,
    evaluate_student,
    evaluation,
    initial_shared,
    text_guided_masks,
)
from tests.dusss_core.conftest import make_config, make_split


def pretrained(config, train, bank, rounds=1):
    trainer = Pretrainer(config, "a", train, train, bank)
    trainer.load_shared(initial_shared(config, Phase.PRETRAIN))
    for r in range(1, rounds + 1):
        trainer.train_round(r)
    return trainer.shared()


def trained_student(config, train, bank):
    logits = None
    if config.method.text_mask:
        logits = text_guided_masks(config, pretrained(config, train, bank), train, bank)
    trainer = Segmenter(config, "a", train, train, text_logits=logits)
    trainer.load_shared(initial_shared(config, Phase.SEGMENT))
    trainer.train_round(1)
    return digest_of_tensors(trainer.shared())


SWITCHES = ["sss", "dcl", "ltg", "text_mask", "teacher", "grounding_supervision", "grounding_consistency"]


def test_every_switch_of_the_method_changes_the_student(bank):
    train = make_split()
    digests = {"all on": trained_student(make_config(), train, bank)}
    for switch in SWITCHES:
        digests[switch] = trained_student(make_config(method={switch: False}), train, bank)
    digests["detach"] = trained_student(make_config(method={"detach_uncertainty": False}), train, bank)
    digests["literal Eq. 15"] = trained_student(make_config(method={"merge": "probabilities"}), train, bank)
    digests["identity pairs"] = trained_student(make_config(method={"pairs": "identity"}), train, bank)
    assert len(set(digests.values())) == len(digests), digests


def make_trainer(phase, config, train, bank, logits=None):
    if phase == "pretrain":
        return Pretrainer(config, "a", train, train, bank)
    return Segmenter(config, "a", train, train, text_logits=logits)


@pytest.mark.parametrize("phase", [Phase.PRETRAIN, Phase.SEGMENT])
@pytest.mark.parametrize("local_norm", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_round_from_saved_state_equals_the_uninterrupted_one(phase, local_norm, channels_last, bank, tmp_path):
    config, train = make_config(local_norm=local_norm, runtime={"channels_last": channels_last}), make_split()
    logits = np.zeros((12, 1, 32, 32), np.float16)
    straight = make_trainer(phase, config, train, bank, logits)
    straight.load_shared(initial_shared(config, phase))
    straight.train_round(1)
    shared = straight.shared()
    write_tensors(tmp_path / "state.safetensors", straight.private())  # a file keeps no memory format
    straight.load_shared(shared)
    straight.train_round(2)

    resumed = make_trainer(phase, config, train, bank, logits)
    resumed.load_private(read_tensors(tmp_path / "state.safetensors")[0])
    resumed.load_shared(shared)
    resumed.train_round(2)
    assert digest_of_tensors(resumed.shared()) == digest_of_tensors(straight.shared())
    assert digest_of_tensors(resumed.private()) == digest_of_tensors(straight.private())


@pytest.mark.parametrize("phase", Phase)
def test_schedules_run_over_the_whole_phase_and_not_over_a_round(phase, bank):
    config, train = make_config(), make_split()
    trainer = make_trainer(phase, config, train, bank)
    trainer.load_shared(initial_shared(config, phase))
    rates, shares, losses = [], [], trainer.losses
    trainer.progress = lambda *_: rates.append(trainer.optimizer.param_groups[0]["lr"])
    trainer.losses = lambda batch, draw, share_done: shares.append(share_done) or losses(batch, draw, share_done)
    for round in (1, 2):
        trainer.train_round(round)
    steps = 2 * trainer.steps_per_round
    assert steps == 4
    assert rates == [cosine_lr(step, steps, trainer.settings.optimizer) for step in range(steps)]
    assert len(set(rates)) == steps
    assert shares == [step / steps for step in range(steps)]


@pytest.mark.parametrize("phase", Phase)
def test_a_round_can_be_a_share_of_the_passes_and_never_more(phase, bank):
    def round_of(**settings):
        config, train = make_config(**{str(phase): {"rounds": 2, "batch": 6, **settings}}), make_split()
        trainer = make_trainer(phase, config, train, bank)
        trainer.load_shared(initial_shared(config, phase))
        return trainer.train_round(1)["n_steps"]

    whole = round_of()
    assert whole == 2
    assert (round_of(steps=1), round_of(steps=1, epochs=3)) == (1, 1)
    assert (round_of(steps=50), round_of(steps=50, epochs=3)) == (whole, 3 * whole)


def test_nothing_private_is_shared(bank):
    config, train = make_config(), make_split()
    trainer = Segmenter(config, "a", train, train, text_logits=np.zeros((12, 1, 32, 32), np.float16))
    trainer.load_shared(initial_shared(config, Phase.SEGMENT))
    trainer.train_round(1)
    shared, private = trainer.shared(), trainer.private()
    assert set(shared) == set(initial_shared(config, Phase.SEGMENT))
    assert any(name.startswith("objective.teacher.") for name in private)
    assert any(name.startswith("optimizer.") for name in private)
    values = {value.numpy().tobytes() for name, value in private.items() if value.ndim == 4}
    assert not values & {value.numpy().tobytes() for value in shared.values()}


def test_fedbn_keeps_normalisation_at_the_site(bank):
    config, train = make_config(local_norm=True), make_split()
    trainer = Segmenter(config, "a", train, train)
    assert not any("running" in name for name in trainer.shared())
    assert any(name.startswith("local.") and "running_mean" in name for name in trainer.private())


@pytest.mark.parametrize("phase", [Phase.PRETRAIN, Phase.SEGMENT])
def test_fedbn_fits_its_statistics_to_the_weights_that_arrive(phase, bank):
    config, train = make_config(local_norm=True), make_split()
    trainer = make_trainer(phase, config, train, bank)
    layers = [m for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert layers
    settings = [(layer.momentum, layer.training) for layer in layers]
    trainer.load_shared({name: 3 * tensor for name, tensor in initial_shared(config, phase).items()})
    seen = []
    handle = layers[0].register_forward_hook(lambda layer, inputs, _: seen.append(inputs[0].mean((0, 2, 3))))
    trainer.load_shared(initial_shared(config, phase))
    handle.remove()
    assert torch.allclose(layers[0].running_mean, torch.stack(seen).mean(0), atol=1e-6)
    assert [(layer.momentum, layer.training) for layer in layers] == settings
    once = digest_of_tensors(trainer.private())
    trainer.load_shared(initial_shared(config, phase))
    assert digest_of_tensors(trainer.private()) == once


def test_statistics_are_the_mean_over_all_batches_that_they_are_estimated_on(bank):
    config, train = make_config(local_norm=True), make_split(n=40)
    trainer = Segmenter(config, "a", train, train)
    layer = next(m for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen = []
    layer.register_forward_hook(lambda layer, inputs, _: seen.append(inputs[0].mean((0, 2, 3))))
    trainer.load_shared(initial_shared(config, Phase.SEGMENT))
    assert len(seen) > 1 and not torch.allclose(seen[0], seen[-1], atol=1e-4)
    assert torch.allclose(layer.running_mean, torch.stack(seen).mean(0), atol=1e-6)


def test_shared_statistics_are_taken_as_they_come(bank):
    config, train = make_config(), make_split()
    trainer = Segmenter(config, "a", train, train)
    shared = initial_shared(config, Phase.SEGMENT)
    trainer.load_shared(shared)
    assert digest_of_tensors(trainer.shared()) == digest_of_tensors(shared)


@pytest.mark.parametrize("phase", [Phase.PRETRAIN, Phase.SEGMENT])
def test_what_is_sent_may_have_statistics_of_plain_pictures_and_is_else_the_same(phase, bank):
    train, sent = make_split(), {}
    for kind in ("followed", "estimated"):
        config = make_config(batch_statistics=kind)
        trainer = make_trainer(phase, config, train, bank)
        trainer.load_shared(initial_shared(config, phase))
        trainer.train_round(1)
        sent[kind] = trainer.shared()
        assert trainer.model.training
    statistics = {name for name in sent["followed"] if "running" in name or "num_batches" in name}
    own = make_trainer(phase, make_config(local_norm=True), train, bank)
    own.load_start({name: value for name, value in sent["followed"].items() if name not in own.shapes()})
    own.load_shared({name: value for name, value in sent["followed"].items() if name in own.shapes()})
    expected = own.model.state_dict()
    for name, value in sent["estimated"].items():
        assert torch.equal(value, (expected if name in statistics else sent["followed"])[name]), name
    assert any(not torch.equal(sent["estimated"][name], sent["followed"][name]) for name in statistics)


@pytest.mark.parametrize("kind", ["followed", "estimated"])
@pytest.mark.parametrize("phase", [Phase.PRETRAIN, Phase.SEGMENT])
def test_fixed_statistics_are_those_of_half_of_the_rounds_and_trained_with_from_then_on(phase, kind, bank):
    """FixBN (Zhong, Chen and Chao 2023)."""
    train, sent, rounds = make_split(), {}, 4
    for fixed in (False, True):
        changes = {"batch_statistics": kind, "fixed_statistics": fixed, phase: {"rounds": rounds, "batch": 4}}
        config = make_config(**changes)
        trainer = make_trainer(phase, config, train, bank)
        trainer.load_shared(initial_shared(config, phase))
        sent[fixed] = []
        for round in range(1, rounds + 1):
            trainer.train_round(round)
            sent[fixed].append(trainer.shared())
            trainer.validate()  # which sets modes of its own
    statistics = {name for name in sent[True][0] if "running" in name or "num_batches" in name}
    weights = set(sent[True][0]) - statistics
    for before, after in zip(sent[False][:2], sent[True][:2], strict=True):
        assert digest_of_tensors(before) == digest_of_tensors(after)
    for number in (2, 3):
        before, after = sent[True][number - 1 : number + 1]
        assert statistics and all(torch.equal(after[name], before[name]) for name in statistics)
        assert any(not torch.equal(after[name], before[name]) for name in weights)
        # what a layer answers does not depend on the batch any more
        assert any(not torch.equal(after[name], sent[False][number][name]) for name in weights)


def test_statistics_of_a_single_round_are_followed():
    sent = []
    for fixed in (False, True):
        config, train = make_config(fixed_statistics=fixed, segment={"rounds": 1, "batch": 4}), make_split()
        trainer = Segmenter(config, "a", train, train)
        trainer.load_shared(initial_shared(config, Phase.SEGMENT))
        trainer.train_round(1)
        sent.append(digest_of_tensors(trainer.shared()))
    assert sent[0] == sent[1]


def test_a_site_that_trains_nothing_estimates_nothing(bank):
    config, train = make_config(batch_statistics="estimated"), make_split(labelled=0)
    trainer = Segmenter(config, "a", train, train)
    shared = initial_shared(config, Phase.SEGMENT)
    trainer.load_shared(shared)
    trainer.pace = lambda share_done: 0.0
    trainer.train_round(1)
    assert digest_of_tensors(trainer.shared()) == digest_of_tensors(shared)


def test_a_student_without_statistics_has_none_to_estimate(bank):
    sent = []
    for kind in ("followed", "estimated"):
        config, train = make_config(batch_statistics=kind, student={"norm": "group"}), make_split()
        trainer = Segmenter(config, "a", train, train)
        trainer.load_shared(initial_shared(config, Phase.SEGMENT))
        trainer.train_round(1)
        sent.append(digest_of_tensors(trainer.shared()))
    assert sent[0] == sent[1]


def test_training_improves_masks_and_student(bank):
    # a student of width 4 gets stuck on some seeds, whatever it learns from
    config, train = make_config(student={"width": 8}), make_split(n=16, labelled=8)
    config.pretrain.rounds = config.segment.rounds = 12
    config.segment.epochs = 3
    config.segment.optimizer.lr = 5e-3
    vlm = pretrained(config, train, bank, rounds=12)
    logits = text_guided_masks(config, vlm, train, bank)
    assert evaluate_logits(config, logits, train)["dice"] > 0.8
    trainer = Segmenter(config, "a", train, train, text_logits=logits)
    trainer.load_shared(initial_shared(config, Phase.SEGMENT))
    before = trainer.validate()["dice"]
    for r in range(1, 13):
        trainer.train_round(r)
    after = evaluate_student(config, trainer.shared(), train)
    assert after["dice"] > max(before, 0.8)
    assert after["n"] == 16


@pytest.mark.parametrize(
    "split", [{"labelled": 0}, {"with_text": 0}, {"n": 1, "labelled": 1}, {"labelled": 12}, {"with_text": 5}]
)
def test_every_kind_of_site_can_take_part(split, bank):
    config, train = make_config(), make_split(**split)
    logits = None
    if can_train(config, Phase.PRETRAIN, train) is None:
        logits = text_guided_masks(config, pretrained(config, train, bank), train, bank)
    else:
        assert split == {"with_text": 0}
    trainer = Segmenter(config, "a", train, make_split(n=0, labelled=0), text_logits=logits)
    trainer.load_shared(initial_shared(config, Phase.SEGMENT))
    assert np.isfinite(trainer.train_round(1)["loss"])
    assert trainer.validate() == {}


def test_sites_that_cannot_train_say_why():
    empty, unlabelled = make_split(n=0, labelled=0), make_split(labelled=0)
    assert "no training pictures" in can_train(make_config(), Phase.SEGMENT, empty)
    supervised = make_config(method={"preset": "supervised"})
    assert "no labelled" in can_train(supervised, Phase.SEGMENT, unlabelled)
    assert can_train(make_config(), Phase.SEGMENT, unlabelled) is None


def test_text_masks_are_nan_exactly_where_there_is_no_text(bank):
    config, train = make_config(), make_split(with_text=7)
    logits = text_guided_masks(config, initial_shared(config, Phase.PRETRAIN), train, bank)
    assert np.array_equal(np.isnan(logits).all(axis=(1, 2, 3)), ~train.has_text)
    assert np.isfinite(logits[train.has_text]).all()


@pytest.mark.parametrize("runtime, together", [({}, 8), ({"eval_batch": 4}, 4), ({"channels_last": "auto"}, 1)])
def test_what_students_learn_from_is_read_in_the_same_batches_unless_the_study_leaves_that_to_the_device(
    bank, monkeypatch, runtime, together
):
    monkeypatch.setattr("dusss_core.runtime.CPU_EVAL_PIXELS", 1)
    read, ground = [], evaluation._ground
    monkeypatch.setattr(
        evaluation, "_ground", lambda c, v, x, *more, **how: read.append(len(x)) or ground(c, v, x, *more, **how)
    )
    config, train = make_config(vlm={"mirror": False}, runtime=runtime), make_split(n=8)
    text_guided_masks(config, initial_shared(config, Phase.PRETRAIN), train, bank)
    assert max(read) == together


def test_text_masks_are_the_mean_over_picture_and_mirror_image_where_the_sentence_has_one(bank):
    config, train = make_config(), make_split()
    vlm = pretrained(config, train, bank)

    def masks(split, mirror, flip=True):
        settings = make_config(vlm={**config.vlm.model_dump(), "mirror": mirror}, pretrain={"flip": flip})
        return text_guided_masks(settings, vlm, split, bank)

    alone, both = masks(train, False), masks(train, True)
    model = build_vlm(config)
    load_tensors(model, vlm)
    x = to_input(torch.from_numpy(train.images[:1].copy()).flip(-1), config.image)
    with torch.no_grad():
        other = model.eval()(x, *bank.features(torch.from_numpy(train.sentence[:1]), mirrored=torch.tensor([True])))
    np.testing.assert_allclose(both[:1], (alone[:1] + other.flip(-1).numpy()) / 2, atol=2e-2)
    assert not np.allclose(both[:1], alone[:1], atol=2e-2)
    # a model that has never seen mirrored pictures is not asked about them
    assert np.array_equal(masks(train, True, flip=False), alone)
    # a sentence whose side hides in an abbreviation cannot be mirrored: such a record keeps its own mask
    bank.may_flip = lambda indices: torch.zeros(len(indices), dtype=torch.bool)
    assert np.array_equal(masks(train, True), alone)


def test_a_loss_that_is_not_finite_is_an_error_with_place_and_remedy(bank):
    config, train = make_config(segment={"optimizer": {"lr": 1e-3}, "batch": 6}), make_split()
    trainer = Segmenter(config, "a", train, train)
    poisoned = initial_shared(config, Phase.SEGMENT)
    poisoned["head.bias"][:] = float("nan")
    trainer.load_shared(poisoned)
    with pytest.raises(UserError, match="site a, phase segment, round 1, step 1: the loss is nan"):
        trainer.train_round(1)


def test_proximal_term_pulls_towards_the_global_model():
    train = make_split()
    distance = []
    for mu in (0.0, 10.0):
        config = make_config(prox_mu=mu, method={"preset": "supervised"})
        start = initial_shared(config, Phase.SEGMENT)
        trainer = Segmenter(config, "a", train, train)
        trainer.load_shared(start)
        trainer.train_round(1)
        trainer.train_round(2)
        end = trainer.shared()
        distance.append(sum(float((end[k] - start[k]).pow(2).sum()) for k in start if k.endswith("weight")))
    assert distance[1] < distance[0]


def test_batches_use_scarce_labels_more_often_and_all_records():
    draw = torch.Generator().manual_seed(0)
    seen_labelled, seen_other = [], []
    for labelled, other in two_stream_batches(np.arange(3), np.arange(3, 23), 8, 0.5, 5, draw):
        assert len(labelled) == len(other) == 4
        seen_labelled += list(labelled)
        seen_other += list(other)
    assert sorted(seen_other) == list(range(3, 23))
    assert set(seen_labelled) == {0, 1, 2}
    only = list(two_stream_batches(np.array([], int), np.arange(5), 4, 0.5, 2, draw))
    assert all(len(a) == 0 and len(b) == 4 for a, b in only)


def test_plentiful_labels_keep_their_natural_share_of_a_batch():
    draw = torch.Generator().manual_seed(1)
    [(labelled, other)] = two_stream_batches(np.arange(12), np.arange(12, 16), 8, 0.25, 1, draw)
    assert (len(labelled), len(other)) == (6, 2)


def test_a_text_guided_mask_weighs_as_much_as_a_true_one_and_the_teachers_own_less():
    train = make_split()
    batch = np.flatnonzero(train.labelled)[:1], np.flatnonzero(~train.labelled)[:3]
    guided, alone = np.full((12, 1, 32, 32), 2, np.float16), np.full((12, 1, 32, 32), np.nan, np.float16)
    for logits, as_labelled, weight in ((guided, True, 3), (guided, False, 1), (alone, True, 1), (None, True, 1)):
        config = make_config(segment={"rampup": 0, "guided_as_labelled": as_labelled})
        trainer = Segmenter(config, "a", train, train, text_logits=logits)
        trainer.load_shared(initial_shared(config, Phase.SEGMENT))
        loss, parts = trainer.losses(batch, torch.Generator().manual_seed(1), 1.0)
        kinds = (parts["semi_merged"] + parts["semi_text"]) / 2 if logits is guided else parts["semi_teacher"]
        assert loss.item() == pytest.approx(parts["supervised"] + weight * kinds)


@pytest.mark.parametrize("classes", [1, 2])
def test_another_view_learns_the_true_mask_where_there_is_one_and_its_own_elsewhere(classes, bank):
    train = make_split()
    config = make_config(image={"size": 32, "classes": classes}, pretrain={"rampup": 0})
    trainer = Pretrainer(config, "a", train, train, bank)
    trainer.load_shared(initial_shared(config, Phase.PRETRAIN))
    labelled, other = np.flatnonzero(train.labelled & train.has_text), np.flatnonzero(~train.labelled & train.has_text)
    seen = trainer._look((labelled, other), torch.Generator().manual_seed(1))
    n = len(labelled)
    truth = supervised_loss(seen.other_grounding.logits[:n], seen.mask, dice=True)
    own = seen.grounding.logits[n:].detach()
    target = own.sigmoid() if classes == 1 else own.softmax(dim=1)
    pseudo = pseudo_label_loss(seen.other_grounding.logits[n:], target, dice=True)
    assert n and len(other)
    torch.testing.assert_close(trainer._consistency(seen, 1.0), truth + pseudo)


def test_a_site_without_masks_does_not_teach_the_decoder_its_own_mistakes(bank):
    for labelled, teaches in ((0, False), (4, True)):
        trainer = Pretrainer(make_config(), "a", make_split(labelled=labelled), make_split(), bank)
        trainer.load_shared(initial_shared(make_config(), Phase.PRETRAIN))
        before = trainer.shared()
        assert ("consistency" in trainer.train_round(1)) == teaches
        moved = {name for name, tensor in trainer.shared().items() if not torch.equal(tensor, before[name])}
        assert any(name.startswith("image.") for name in moved)
        assert any(name.startswith("grounding.") for name in moved) == teaches
