"""A site's own limits hold for the student that is its own, too."""

from __future__ import annotations

import pytest

from client.answer import answer
from client.privacy.ledger import UNPAID, Ledger
from client.work.workbench import Workbench, forget
from dusss_core import training
from dusss_core.config import TrainingConfig
from dusss_core.errors import NotFinite
from dusss_core.files import digest_of_tensors, read_tensors
from dusss_core.objectives import TABLE, objective_of, reads_sentences, with_objective
from dusss_core.phases import Phase
from dusss_core.student import read_student, students_in
from dusss_core.training import evaluation, fine_tuned, initial_shared, on_labels_alone
from feddusss import wire
from server.simulation.materialise import materialise
from sites.config import PrivacyConfig, load_site
from sites.dataset import SiteData
from tests.client.conftest import declined, limit, make_content
from tests.client.fake_private import make_private
from tests.server.conftest import make_study


@pytest.fixture(autouse=True)
def no_other_workbenches():
    forget()
    yield
    forget()


def content(personal, **config):
    """A message with the first student, as the true method makes it."""
    study = make_study(method={"preset": "supervised"}, personal=personal, student__norm="group").training()
    made = make_content(study=study, **config)
    made["arrays"] = wire.pack(initial_shared(study, Phase.SEGMENT))
    return made


def told(reply) -> set[str]:
    """Names of the figures of a site's own student."""
    return {name for record in reply.metric_records.values() for name in record if "personal" in name}


def ledger_of(site_file) -> Ledger:
    return Ledger(site_file.parent / "state", PrivacyConfig.model_validate({"epsilon": 8.0, "records": 500}))


def own_students(site_file) -> list:
    return list((site_file.parent / "state").rglob("segment-personal-*.safetensors"))


@pytest.mark.parametrize(
    ("limits", "steps"),
    [({}, 3), ({"max_steps_per_round": 1}, 1), ({"max_epochs_per_round": 1}, 2)],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_fine_tuning_has_no_more_steps_than_a_round_may_have(site_file, limits, steps):
    """16 pictures, 8 a step: a pass has two steps."""
    limit(site_file, **limits)
    asked = content({"kind": "finetune", "steps": 3, "lr_ratio": 1}, what="test")
    reply = answer("evaluate", asked, site_file)
    assert declined(reply) is None and "test.dice" in reply["metrics"] and "personal.dice" in told(reply)
    (file,) = own_students(site_file)
    study = TrainingConfig.model_validate_json(asked["config"]["training"])
    train = SiteData(load_site(site_file), study.image).split("train")
    few = study.model_copy(update={"personal": study.personal.model_copy(update={"steps": steps})})
    expected = fine_tuned(few, "alder", train, initial_shared(study, Phase.SEGMENT))
    assert digest_of_tensors(read_tensors(file)[0]) == digest_of_tensors(expected)


@pytest.mark.parametrize("better", ["labels alone", "the method's"])
def test_of_two_fine_tuned_students_a_site_keeps_the_one_that_its_validation_pictures_speak_for(
    site_file, monkeypatch, better
):
    """Both go half of the steps that the site allows in a round, from the final student."""
    limit(site_file, max_steps_per_round=2)
    personal = {"kind": "finetune", "steps": 3, "lr_ratio": 1, "labels_too": True}
    asked = content(personal, what="test")
    study = make_study(method={"preset": "mean_teacher"}, personal=personal, student__norm="group").training()
    asked["config"]["training"] = study.model_dump_json()
    train = SiteData(load_site(site_file), study.image).split("train")
    one = study.model_copy(update={"personal": study.personal.model_copy(update={"steps": 1})})
    both = {
        "the method's": fine_tuned(one, "alder", train, initial_shared(study, Phase.SEGMENT)),
        "labels alone": fine_tuned(on_labels_alone(one), "alder", train, initial_shared(study, Phase.SEGMENT)),
    }
    digests = {name: digest_of_tensors(student) for name, student in both.items()}
    assert len(set(digests.values())) == 2
    true = training.evaluate_student

    def scored(config, student, split, *args, **kwargs):
        figures = true(config, student, split, *args, **kwargs)
        return {**figures, "dice": 0.9 if digest_of_tensors(student) == digests[better] else 0.5}

    monkeypatch.setattr(training, "evaluate_student", scored)
    reply = answer("evaluate", asked, site_file)
    assert declined(reply) is None and "personal.dice" in told(reply)
    (file,) = own_students(site_file)
    assert digest_of_tensors(read_tensors(file)[0]) == digests[better]
    assert f"kept: {better}" in (site_file.parent / "state" / "log.txt").read_text()


def test_where_labels_alone_give_no_student_a_site_keeps_the_methods(site_file, monkeypatch):
    study = make_study(personal={"kind": "finetune", "labels_too": True}, student__norm="group").training()
    asked = content(study.personal.model_dump(), what="test")
    asked["config"]["training"] = study.model_copy(
        update={"method": make_study(method={"preset": "mean_teacher"}).training().method}
    ).model_dump_json()
    true = Workbench.fine_tuned

    def diverging(self, request, student, plain=None, shared_by=1):
        if plain is not None:
            raise NotFinite("the loss is not finite", "lower the learning rate")
        return true(self, request, student, plain, shared_by)

    monkeypatch.setattr(Workbench, "fine_tuned", diverging)
    reply = answer("evaluate", asked, site_file)
    assert declined(reply) is None and "personal.dice" in told(reply) and len(own_students(site_file)) == 1
    assert (
        "on labels alone it gave no student: the loss is not finite"
        in (site_file.parent / "state" / "log.txt").read_text()
    )


@pytest.mark.parametrize("better", ["followed", "estimated"])
@pytest.mark.parametrize("kind", ["ditto", "apfl", "finetune"])
def test_statistics_of_a_sites_own_student_are_those_that_its_validation_pictures_speak_for(
    site_file, monkeypatch, kind, better
):
    """Of the ones that it followed in training and the ones that are estimated, as of the shared student."""
    study = make_study(method={"preset": "supervised"}, personal={"kind": kind}, local_norm=True).training()
    train = SiteData(load_site(site_file), study.image).split("train")
    true = evaluation.evaluate_student

    def estimated(student) -> bool:
        fitted = training.with_own_statistics(study, Phase.SEGMENT, student, train)
        return digest_of_tensors(fitted) == digest_of_tensors(student)

    def scored(config, student, *args, **kwargs):
        figures = true(config, student, *args, **kwargs)
        return {**figures, "dice": 0.9 if estimated(student) == (better == "estimated") else 0.5}

    monkeypatch.setattr(evaluation, "evaluate_student", scored)
    # the last round is validated twice, as after a crash of the coordinator
    for number, kind_of_message in enumerate(["train", "train", "evaluate", "evaluate", "test"], 1):
        what = {"evaluate": {"what": "val"}, "test": {"what": "test"}}.get(kind_of_message, {})
        asked = make_content(study=study, round=min(number, 3) if kind_of_message != "test" else 2, **what)
        asked["arrays"] = wire.pack(initial_shared(study, Phase.SEGMENT))
        assert declined(answer("train" if kind_of_message == "train" else "evaluate", asked, site_file)) is None
    (file,) = (site_file.parent / "state" / "students").glob("*.personal.safetensors")
    assert estimated(read_student(file)[1]) == (better == "estimated")


def test_a_site_that_fine_tuned_without_a_budget_has_none_afterwards(site_file):
    """What it told of that student is not private, and no ledger paid for it."""
    asked = content({"kind": "finetune", "steps": 2}, what="test")
    assert "personal.dice" in told(answer("evaluate", asked, site_file))
    assert ledger_of(site_file).is_void() and (site_file.parent / "state" / UNPAID).exists()


def test_fine_tuning_that_does_not_come_to_its_end_is_noted_as_well(site_file, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("client.work.workbench.Workbench.fine_tuned", killed)
    with pytest.raises(KeyboardInterrupt):
        answer("evaluate", content({"kind": "finetune", "steps": 2}, what="test"), site_file)
    assert (site_file.parent / "state" / UNPAID).exists()


def test_fine_tuning_that_memory_is_too_small_for_names_the_batch_that_it_trains_with(site_file, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("client.work.workbench.Workbench.fine_tuned", full)
    why = declined(answer("evaluate", content({"kind": "finetune", "steps": 2}, what="test"), site_file))
    assert "segment.batch" in why and "eval_batch" not in why


def test_a_site_that_was_tested_alone_has_trained_nothing(site_file):
    assert not told(answer("evaluate", content({"kind": "none"}, what="test"), site_file))
    assert not ledger_of(site_file).is_void()


def test_a_method_of_labels_alone_has_no_second_student():
    personal = {"kind": "finetune", "labels_too": True}
    assert on_labels_alone(make_study(method={"preset": "supervised"}, personal=personal).training()) is None
    assert on_labels_alone(make_study(personal={"kind": "finetune"}).training()) is None
    plain = on_labels_alone(make_study(personal=personal).training())
    assert not plain.method.teacher and not plain.method.text_mask


def test_methods_that_learn_from_pictures_without_masks_have_a_second_student_of_the_same_network():
    study = make_study(personal={"kind": "finetune", "labels_too": True}).training()
    for objective in TABLE:
        config = with_objective(study, objective)
        kind, plain = objective_of(config), on_labels_alone(config)
        if kind.learns_from(config) == "none" or kind.builds(config):
            assert plain is None
        else:
            assert objective_of(plain).learns_from(plain) == "none"
            assert reads_sentences(plain) == reads_sentences(config)
    assert on_labels_alone(with_objective(study, "fixmatch")) and not on_labels_alone(with_objective(study, "mcnet"))


def test_a_site_that_only_evaluates_is_not_made_to_train(site_file):
    limit(site_file, phases=[])
    reply = answer("evaluate", content({"kind": "finetune", "steps": 3}, what="test"), site_file)
    assert declined(reply) is None and "test.dice" in reply["metrics"] and not told(reply)
    assert "not fine-tuned here: this site does not train" in (site_file.parent / "state" / "log.txt").read_text()


def test_fine_tuning_makes_no_step_on_fewer_labelled_pictures_than_the_site_allows(site_file):
    """Of 16 pictures 8 are labelled, and a step has no more."""
    limit(site_file, min_labelled_per_step=9)
    reply = answer("evaluate", content({"kind": "finetune", "steps": 3}, what="test"), site_file)
    assert declined(reply) is None and "test.dice" in reply["metrics"] and not told(reply)
    assert not own_students(site_file)
    assert "min_labelled_per_step" in (site_file.parent / "state" / "log.txt").read_text()


@pytest.mark.parametrize("limits", [{"phases": ["pretrain"]}, {"max_learning_rate": 5e-4}])
def test_a_message_that_calls_the_final_student_one_of_step_1_passes_no_limit_of_step_2(site_file, limits):
    """Whose learning rate is 1e-3, that of step 1 a tenth."""
    limit(site_file, **limits)
    for phase in Phase:
        asked = content({"kind": "finetune", "steps": 3}, what="test", phase=phase)
        asked["config"]["training"] = asked["config"]["training"].replace('"lr":0.001', '"lr":0.0001', 1)
        assert not told(answer("evaluate", asked, site_file)) and not own_students(site_file)


def test_a_site_with_differential_privacy_alone_fine_tunes_nothing(site_file):
    make_private(site_file)
    reply = answer("evaluate", content({"kind": "finetune", "steps": 3}, what="test"), site_file)
    assert declined(reply) is None and not told(reply) and not own_students(site_file)


@pytest.mark.parametrize(("kind", "steps"), [("none", 2), ("fedrep", 2), ("ditto", 4), ("apfl", 4)])
def test_the_steps_of_both_students_count(site_file, kind, steps):
    """16 pictures, 8 a step, one pass: two steps, and two more of a student beside the global one."""
    own_file = site_file.read_text()
    limit(site_file, max_steps_per_round=steps - 1)
    assert "max_steps_per_round" in declined(answer("train", content(kind), site_file))
    site_file.write_text(own_file)
    limit(site_file, max_steps_per_round=steps)
    assert declined(answer("train", content(kind), site_file)) is None


def test_simulated_sites_cut_no_steps_short_where_two_students_are_fine_tuned(tmp_path):
    """A hospital's own default would, at a site of few pictures."""
    plain = make_study(personal={"kind": "finetune", "steps": 500})
    two = make_study(personal={"kind": "finetune", "steps": 500, "labels_too": True})
    before = [load_site(file).limits.max_epochs_per_round for file in materialise(plain, tmp_path)]
    after = [load_site(file).limits.max_epochs_per_round for file in materialise(two, tmp_path)]
    assert set(before) == {5} and min(after) >= 500


@pytest.mark.parametrize(("kind", "whose"), [("none", None), ("fedrep", "alder"), ("ditto", None)])
def test_the_file_of_a_finished_student_says_whose_head_it_has(site_file, kind, whose):
    assert declined(answer("train", content(kind), site_file)) is None
    reply = answer("evaluate", content(kind, what="test"), site_file)
    assert declined(reply) is None, declined(reply)
    (file,) = students_in(site_file.parent / "state/students")
    about, _ = read_student(file)
    assert (about.layers, about.site, about.objective) == ("shared", whose, "supervised")
