"""No figure of a single patient leaves a site, whatever a study asks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from client.answer import answer
from client.door import policy
from client.door.audit import verify
from client.work.disclosure import _OF_CLASS, _Pictures, _pictures
from dusss_core.manifest import read_manifest
from dusss_core.objectives import TABLE, objective_of, with_objective
from dusss_core.phases import Phase
from dusss_core.sampling import labelled_per_step, two_stream_batches
from server.study.config import load_study
from sites.config import LimitsConfig, SiteConfig, load_site
from tests.client.conftest import declined, limit, make_content
from tests.server.conftest import make_study

ROOT = Path(__file__).parents[3]
STUDIES = [file for file in sorted((ROOT / "configs").glob("*.yaml")) if not file.stem.startswith("site_")]
ALWAYS = {"num-examples", "state.age", "seconds"}


def settings(**changes):
    return make_study(method={"preset": "mean_teacher"}, **changes).training()


class _Records(SimpleNamespace):
    """A split, as far as it is counted."""

    def __len__(self):
        return len(self.ids)


def metrics(kind, site_file, **config):
    reply = answer(kind, make_content(study=settings(), **config), site_file)
    assert declined(reply) is None, declined(reply)
    return dict(reply["metrics"])


def log_of(site_file):
    return (site_file.parent / "state" / "log.txt").read_text()


@pytest.mark.parametrize(("kind", "what"), [("train", "train"), ("evaluate", "val"), ("evaluate", "test")])
def test_figures_of_few_pictures_stay_at_home(fake, site_file, kind, what):
    """alder has 6 test, 6 validation and 8 labelled pictures."""
    told = metrics(kind, site_file, what=what)
    assert set(told) - ALWAYS
    limit(site_file, min_records=9)
    assert set(metrics(kind, site_file, what=what, round=2)) <= ALWAYS
    assert "which stay here" in log_of(site_file) and '"' + min(set(told) - ALWAYS) in log_of(site_file)


def test_what_stays_at_home_is_not_in_the_audit_log_either(fake, site_file):
    """Whose head leaves."""
    limit(site_file, min_records=9)
    metrics("evaluate", site_file, what="test")
    log = site_file.parent / "state" / "audit.jsonl"
    assert verify(log).broken is None and "dice" not in log.read_text()


def test_figures_of_enough_pictures_leave(fake, site_file):
    limit(site_file, min_records=6)
    assert metrics("evaluate", site_file, what="test")["test.n"] == 6
    assert {"val.dice", "train.loss"} <= set(metrics("train", site_file))


def test_pictures_are_counted_as_such_whatever_their_ids():
    whole = [f"scan@{number}" for number in range(4)] + ["a@b.org"]
    tiles = [f"slide@1@{y},{x}" for y in (0, 64) for x in (0, 64)]
    for ids, pictures in ((whole, 5), (tiles, 1), (whole + tiles, 6)):
        assert _pictures(SimpleNamespace(ids=ids), np.ones(len(ids), bool)) == pictures


def empty_masks(site_file, split, but):
    """Take the finding out of the masks of a split, but for the first ones."""
    from PIL import Image

    of_split = [one for one in read_manifest(site_file.parent / "manifest.csv") if one.split == split]
    for record in of_split[but:]:
        path = Path(record.mask)
        Image.new("L", Image.open(path).size).save(path)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(("findings", "leave"), [(6, True), (1, False), (0, True)])
def test_figures_of_many_pictures_that_few_findings_decide_stay_at_home(fake, site_file, split, findings, leave):
    """Of six pictures of which one has a finding, the mean is that one's figure where the model marks it alone."""
    empty_masks(site_file, split, findings)
    limit(site_file, min_records=6)
    told = metrics("evaluate", site_file, what=split)
    assert (f"{split}.dice" in told) == leave
    if not leave:
        assert set(told) - ALWAYS <= {"test.n", "test.n_positive"} and f'"{split}.dice"' in log_of(site_file)


@pytest.mark.parametrize("phase", list(Phase))
def test_the_phase_that_a_message_names_lets_no_figure_of_one_finding_out(fake, site_file, phase):
    """The one test picture with a finding has no sentence, and would not be counted among pictures of step 1."""
    empty_masks(site_file, "test", 1)
    manifest = site_file.parent / "manifest.csv"
    lines = manifest.read_text().splitlines()
    first = next(at for at, line in enumerate(lines) if "test" in line.split(","))
    sentence = lines[0].split(",").index("text")
    row = next(csv.reader([lines[first]]))
    row[sentence] = ""
    manifest.write_text("\n".join([*lines[:first], ",".join(row), *lines[first + 1 :], ""]))
    limit(site_file, min_records=5)
    for what in ("test", "train"):
        reply = answer("evaluate", make_content(study=settings(), what=what, phase=phase), site_file)
        assert "test.dice" not in reply.metric_records.get("metrics", {})


@pytest.mark.parametrize(("findings", "counted"), [(0, 12), (3, 3), (12, 12)])
def test_pictures_without_a_finding_have_no_part_in_a_figure_where_others_have_one(findings, counted):
    masks = [np.full((2, 2), at < findings, np.uint8) for at in range(12)]
    every = np.ones(12, bool)
    split = _Records(ids=tuple(map(str, range(12))), masked=every, has_text=every, labelled=~every, masks=masks)
    bench = SimpleNamespace(split=lambda name: split)
    requests = [SimpleNamespace(phase=phase, training=settings()) for phase in reversed(Phase)]
    in_segment, in_pretrain = (_Pictures(request, bench) for request in requests)
    decided = ("val.loss", "val.dice", "test.iou", "test.hd95", "test.dice_pooled", "test.text_dice_low")
    decided += ("text_mask.dice", "pseudo.teacher_dice", "personal.dice", "personal.val_dice")
    assert {in_segment.of(name) for name in decided} == {counted}
    assert {in_segment.of(name) for name in ("test.n", "test.n_positive", "test.dice_from_20", "train.loss")} == {12}
    assert in_pretrain.of("val.dice") == counted and in_pretrain.of("val.loss") == 12


def test_by_default_ten_pictures_are_enough():
    assert LimitsConfig().min_records == 10 and LimitsConfig().min_labelled_per_step == 2


def test_tiles_of_one_picture_are_one(fake, site_file):
    many = _Records(
        ids=tuple(f"one@{y},0" for y in range(50)),
        masked=np.ones(50, bool),
        has_text=np.ones(50, bool),
        labelled=np.ones(50, bool),
        masks=[np.ones((2, 2), np.uint8)] * 50,
    )
    bench = SimpleNamespace(split=lambda name: many)
    pictures = _Pictures(SimpleNamespace(phase=Phase.SEGMENT, training=settings()), bench)
    assert {pictures.of(name) for name in ("train.loss", "val.dice", "test.hd95", "test.dice_1")} == {1}
    assert pictures.of("test.dice_2") == pictures.of("pseudo.text_dice") == 0


def test_what_text_guided_masks_are_judged_by_counts_validation_pictures():
    """And not the many training pictures, with whose loss it is told."""

    def split(pictures):
        every = np.ones(pictures, bool)
        ids = tuple(map(str, range(pictures)))
        return _Records(ids=ids, masked=every, has_text=every, labelled=every, masks=[np.ones((2, 2))] * pictures)

    bench = SimpleNamespace(split=lambda name: split(3 if name == "val" else 50))
    pictures = _Pictures(SimpleNamespace(phase=Phase.SEGMENT, training=settings()), bench)
    assert {pictures.of(name) for name in ("train.text_share", "train.judged_text", "train.judged_plain")} == {3}
    assert pictures.of("train.loss") == 50


@pytest.mark.parametrize(
    ("phase", "preset"), [(Phase.PRETRAIN, "dusss"), (Phase.SEGMENT, "paper")], ids=["pretrain", "segment"]
)
def test_a_loss_counts_the_pictures_that_it_is_made_of_and_not_all_that_there_are(phase, preset):
    """Of 50 unlabelled pictures the 3 with a sentence: step 1, and step 2 without a teacher, learn from no others."""
    told = np.arange(50) < 3
    train = _Records(ids=tuple(map(str, range(50))), has_text=told, labelled=np.zeros(50, bool))
    training = make_study(method={"preset": preset, "teacher": phase == Phase.PRETRAIN}).training()
    pictures = _Pictures(SimpleNamespace(phase=phase, training=training), SimpleNamespace(split=lambda name: train))
    assert pictures.of("train.loss") == 3


def test_a_step_on_a_single_labelled_picture_is_not_made(fake, site_file):
    limit(site_file, min_labelled_per_step=2)
    shy = settings(segment__labelled_share=0.01, segment__batch=2)
    reply = answer("train", make_content(study=shy), site_file)
    assert "limits.min_labelled_per_step" in declined(reply) and reply["config"]["abstains"] is True
    assert not list((site_file.parent / "state").rglob("segment-*"))
    assert declined(answer("train", make_content(study=settings(segment__batch=4)), site_file)) is None


def test_a_site_with_one_labelled_picture_does_not_train_on_it_over_and_over(fake, site_file):
    limit(site_file, min_labelled_per_step=2)
    text = site_file.read_text().replace("manifest.csv}", "manifest.csv, label_fraction: 0.1}")
    site_file.write_text(text)
    assert load_site(site_file).data.label_fraction == 0.1
    assert "limits.min_labelled_per_step" in declined(answer("train", make_content(study=settings()), site_file))


@pytest.mark.parametrize("batch", [2, 5, 8])
@pytest.mark.parametrize(("labelled", "other"), [(0, 4), (4, 0), (1, 9), (6, 120), (9, 1)])
def test_the_counted_labelled_pictures_of_a_step_are_those_that_are_drawn(labelled, other, batch):
    import torch

    for share in (0.01, 0.5, 0.99):
        drawn = two_stream_batches(
            np.arange(labelled), np.arange(other), batch, share, 1, torch.Generator().manual_seed(1)
        )
        ((first, _),) = drawn
        assert len(first) == labelled_per_step(labelled, other, batch, share)


@pytest.mark.parametrize("objective", list(TABLE))
@pytest.mark.parametrize("batch", [2, 6, 16])
@pytest.mark.parametrize(("labelled", "other"), [(4, 0), (5, 5), (12, 380), (20, 80)])
def test_each_method_says_how_many_labelled_pictures_it_draws(objective, batch, labelled, other):
    """`limits.min_labelled_per_step` is held against what it says."""
    import torch

    training = with_objective(make_study().training(), objective)
    kind = objective_of(training)
    if kind.learns_from(training) == "none":
        other = 0
    for share in (0.05, 0.25, 0.9):
        settings = training.segment.model_copy(update={"batch": batch, "labelled_share": share})
        host = SimpleNamespace(labelled=np.arange(labelled), unlabelled=np.arange(labelled, labelled + other))
        drawing = kind.__new__(kind)
        drawing.host, drawing.settings = host, settings
        steps = list(drawing.batches(3, torch.Generator().manual_seed(1)))
        told = kind.labelled_per_step(settings, labelled, other)
        assert [len(first) for first, _ in steps] == [told] * 3


def test_a_method_that_draws_labelled_pictures_as_unlabelled_ones_too_does_not_hide_how_few_count(fake, site_file):
    """UCMT, with half of the pictures labelled: its batch of two has one labelled picture and one of all."""
    limit(site_file, min_labelled_per_step=2)
    study = make_study(method={"objective": "ucmt"}, segment__batch=2, segment__labelled_share=0.5).training()
    assert "limits.min_labelled_per_step" in declined(answer("train", make_content(study=study), site_file))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"segment__optimizer": {"lr": 1.0}}, "limits.max_learning_rate"),
        ({"segment__batch": 10**18}, "limits.max_batch"),
        ({"segment__batch": LimitsConfig().max_batch + 1}, "limits.max_batch"),
        ({"pretrain__batch": 10**18}, "limits.max_batch"),
        ({"runtime": {"eval_batch": 10**18}}, "limits.max_batch"),
    ],
)
def test_a_study_beyond_a_limit_is_declined_before_any_step(fake, site_file, changes, reason):
    study = settings(**changes)
    assert reason in declined(answer("train", make_content(study=study), site_file))
    if "batch" in reason:
        assert reason in declined(answer("evaluate", make_content(study=study, what="test"), site_file))


def test_a_run_has_a_bounded_number_of_models_evaluated(fake, site_file):
    limit(site_file, max_evaluations_per_run=2)
    for _ in range(2):
        metrics("evaluate", site_file, what="test")
    again = make_content(study=settings(), what="test")
    assert "limits.max_evaluations_per_run" in declined(answer("evaluate", again, site_file))
    assert declined(answer("train", make_content(study=settings()), site_file)) is None
    assert metrics("evaluate", site_file, what="test", run_key="cd" * 16)
    counts = json.loads((site_file.parent / "state" / "evaluations.json").read_text())
    assert counts == {f"tiny/{'ab' * 16}": 2, f"tiny/{'cd' * 16}": 1}


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_the_default_limits_refuse_no_preset(file):
    """Of a site with six masks among 120 pictures, as the demo's hospitals have."""
    limits, training = LimitsConfig(), load_study(file).training()
    site = SiteConfig(site="here", data={"manifest": "manifest.csv"}, state_dir="state", limits=limits)
    policy.check_batches(site, training)
    for phase in Phase:
        settings = phase.settings(training)
        assert settings.optimizer.lr <= limits.max_learning_rate and settings.epochs <= limits.max_epochs_per_round
        drawn = labelled_per_step(6, 114, settings.batch, settings.labelled_share)
        assert drawn >= limits.min_labelled_per_step


def test_settings_without_end_do_not_fill_the_memory(fake, site_file):
    from client.work import workbench

    limit(site_file, kept_workbenches=2)
    for seed in range(5):
        answer("train", make_content(study=settings(seed=seed + 1)), site_file)
    assert len(workbench._kept) == 2


@pytest.mark.parametrize("secure", [False, True])
def test_a_study_over_sites_that_keep_their_figures_finishes(fake, tmp_path, monkeypatch, secure):
    """alder and birch have 6 validation and 6 test pictures, and are told nothing about being simulated."""
    from server.runs.events import Reporter
    from server.simulation import materialise
    from server.simulation.simulate import simulate

    write = materialise.write_site
    monkeypatch.setattr(materialise, "write_site", lambda *args, simulated, **settings: write(*args, **settings))
    study = make_study(federation={"secure_aggregation": secure, "secure_threshold": 2 if secure else None})
    simulate(study, tmp_path, reporter=Reporter())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    of_sites = [line for line in lines if line["site"] in ("alder", "birch")]
    assert len(of_sites) >= 8 and all(line["accepted"] for line in of_sites)
    assert not any(line.get("val") or line.get("train") for line in of_sites)
    assert (tmp_path / "student.safetensors").is_file() and "dice" not in str(of_sites)


@pytest.mark.parametrize("name", ["test.dice_1", "test.dice_pooled_1", "test.dice_1_low", "test.text_dice_1_high"])
def test_a_figure_of_a_class_counts_the_pictures_that_have_it(name):
    """And so do its pooled form and the ends of its interval, which one picture alone would decide."""
    assert _OF_CLASS.fullmatch(name.partition(".")[2])[1] == "1"
    assert not [other for other in ("dice", "dice_low", "dice_from_20", "n_positive_1") if _OF_CLASS.fullmatch(other)]
