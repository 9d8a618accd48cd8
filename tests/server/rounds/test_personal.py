"""Studies in which sites have a student of their own, with the true method: what is told of it, where it lies, and that
a run which was killed comes to the same."""

from __future__ import annotations

import json

import pytest
import torch

from client.work.workbench import forget
from dusss_core import load
from dusss_core.export.card import card
from dusss_core.files import digest_of_tensors, read_tensors
from dusss_core.phases import Phase
from dusss_core.training import evaluate_student, initial_shared
from server.report.page import write_report
from server.runs.events import Reporter
from server.runs.lines import ALL_SITES
from server.simulation.local import load_local
from server.simulation.simulate import simulate
from tests.server.conftest import HOSPITALS, finals, make_study
from tests.server.rounds.test_resume import Killed, Killer

KINDS = {
    "ditto": {"kind": "ditto", "weight": 0.5},
    "fedrep": {"kind": "fedrep", "head": "decoder"},
    "apfl": {"kind": "apfl", "learn_alpha": True},
    "finetune": {"kind": "finetune", "steps": 3, "lr_ratio": 1},
}


@pytest.fixture(autouse=True)
def no_other_workbenches():
    forget()
    yield
    forget()


def study(kind, hospitals=HOSPITALS, **changes):
    return make_study(
        hospitals, method={"preset": "supervised"}, personal=KINDS[kind], simulation__threads=1, **changes
    )


def own_students(out, summary) -> dict:
    """By site, read from where the run's summary says that they lie."""
    files = summary["personal"]["files"]
    return {site: read_tensors(out / "sites" / site / "state" / file)[0] for site, file in files.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_tells_what_the_sites_own_students_score_and_where_they_lie(kind, tmp_path):
    # enough is learnt for a site's own student to score otherwise than the global one
    settings = study(kind, segment__epochs=4, segment__batch=4, segment__optimizer={"lr": 2e-2})
    heard = []

    class Listener(Reporter):
        def on_message(self, text):
            heard.append(text)

    summary = simulate(settings, tmp_path, reporter=Listener())
    students = own_students(tmp_path, summary)
    assert set(students) == {"alder", "birch"}
    assert digest_of_tensors(students["alder"]) != digest_of_tensors(students["birch"])
    whole = initial_shared(make_study().training(), Phase.SEGMENT)
    for name, tensors in students.items():
        assert {key: tensor.shape for key, tensor in tensors.items()} == {
            key: tensor.shape for key, tensor in whole.items()
        }
        site, found = load_local(tmp_path / "sites" / name / "site.yaml", settings), summary["sites"][name]
        for split, figure in (("test", "personal_dice"), ("val", "personal_val_dice")):
            scores = evaluate_student(settings.training(), tensors, site.splits[split])
            assert scores["dice"] == pytest.approx(found[figure], abs=1e-6)
    told = [(site["dice"], site["personal_dice"]) for site in summary["sites"].values()]
    assert all((shared == own) == (kind == "fedrep") for shared, own in told)
    assert (tmp_path / "student.safetensors").exists() == (kind != "fedrep")
    dice = [site["personal_dice"] for site in summary["sites"].values()]
    assert summary["personal"]["dice_mean"] == pytest.approx(sum(dice) / 2)
    assert summary["personal"]["dice_worst"] == min(dice)
    assert summary["global"]["dice_mean"] is not None
    assert any(f"students of the sites' own ({kind})" in text for text in heard)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = [line["val"] for line in lines if line["site"] == ALL_SITES]
    assert all(("personal_dice" in val) == (kind != "finetune") for val in told)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Own student, Dice" in page and f"{min(dice):.3f}" in page


@pytest.mark.parametrize("kind", KINDS)
def test_a_sites_own_student_is_a_file_that_loads_by_itself(kind, tmp_path):
    settings = study(kind, segment__epochs=4, segment__batch=4, segment__optimizer={"lr": 2e-2})
    summary = simulate(settings, tmp_path, reporter=Reporter())
    name = "alder" if kind == "fedrep" else "alder.personal"
    copied, shared = load(tmp_path / "students" / f"{name}.safetensors"), tmp_path / "students" / "alder.safetensors"
    there = load(tmp_path / "sites" / "alder" / "state" / summary["personal"]["files"]["alder"])
    assert copied.about == there.about and (there.about.site, there.about.personal) == (
        "alder",
        "none" if kind == "fedrep" else kind,
    )
    assert there.about.round == summary["sites"]["alder"]["personal_round"]
    assert (there.about.tensors == load(shared).about.tensors) == (kind == "fedrep")
    site = load_local(tmp_path / "sites" / "alder" / "site.yaml", settings)
    picture = site.splits["test"].images[0, 0]
    assert there.predict(picture)[0].shape == picture.shape
    told = card(there, summary, "unknown")
    assert f"| {summary['sites']['alder']['personal_dice']:.3f}" in told and "birch" not in told


def test_a_study_without_them_says_nothing_of_them(fake, tmp_path, quiet):
    summary = simulate(make_study(), tmp_path, reporter=quiet)
    assert "personal" not in json.dumps(summary)
    assert "personal" not in (tmp_path / "metrics.jsonl").read_text()
    assert "Own student" not in write_report(tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "event", "at"),
    [
        ("ditto", "on_round_end", 2),
        ("ditto", "on_site_done", 3),
        ("apfl", "on_site_done", 3),
        ("fedrep", "on_round_end", 1),
    ],
)
def test_a_killed_run_resumes_to_the_same_students(kind, event, at, tmp_path):
    whole = simulate(study(kind), tmp_path / "whole", reporter=Reporter())
    forget()
    with pytest.raises(Killed):
        simulate(study(kind), tmp_path / "killed", reporter=Killer(event, at))
    forget()
    resumed = simulate(study(kind), tmp_path / "killed", reporter=Reporter(), resume=True)
    assert finals(tmp_path / "whole") == finals(tmp_path / "killed")
    one, other = own_students(tmp_path / "whole", whole), own_students(tmp_path / "killed", resumed)
    assert {name: digest_of_tensors(student) for name, student in one.items()} == {
        name: digest_of_tensors(student) for name, student in other.items()
    }
    assert whole["sites"] == resumed["sites"]


@pytest.mark.parametrize("kind", ["ditto", "apfl"])
def test_a_site_without_validation_pictures_has_the_student_of_the_last_round(kind, tmp_path):
    hospitals = [HOSPITALS[0], {**HOSPITALS[1], "val": 0}]
    summary = simulate(study(kind, hospitals), tmp_path, reporter=Reporter())
    birch = summary["sites"]["birch"]
    assert birch["personal_round"] == 2 and birch["personal_dice"] is not None and birch["personal_val_dice"] is None
    assert set(own_students(tmp_path, summary)) == {"alder", "birch"}


def test_a_site_that_only_evaluates_has_none(tmp_path):
    outside = {"name": "cedar", "train": 0, "val": 0, "test": 5}
    for kind in ("ditto", "fedrep", "finetune"):
        summary = simulate(study(kind, [*HOSPITALS, outside]), tmp_path / kind, reporter=Reporter())
        cedar = summary["external_test"]["cedar"]
        assert "personal_dice" not in cedar
        # a student without a head is none
        assert (cedar["dice"] is None) == (kind == "fedrep")


@pytest.mark.parametrize("kind", ["ditto", "fedrep"])
def test_the_coordinator_needs_no_more_than_a_sum_of_updates(kind, tmp_path):
    hospitals = [{**HOSPITALS[0], "name": name} for name in ("alder", "birch", "cedar")]
    summaries = {
        secure: simulate(
            study(kind, hospitals, federation={"secure_aggregation": secure}),
            tmp_path / str(secure),
            reporter=Reporter(),
        )
        for secure in (True, False)
    }
    models = [
        read_tensors(tmp_path / str(secure) / "checkpoints" / "student.safetensors")[0] for secure in (True, False)
    ]
    assert models[0].keys() == models[1].keys()
    assert all(torch.allclose(models[0][name], tensor, atol=1e-3) for name, tensor in models[1].items())
    assert set(summaries[True]["personal"]["files"]) == {"alder", "birch", "cedar"}


@pytest.mark.parametrize("wire", ["bfloat16", "int8"])
def test_fewer_bytes_on_the_way_leave_no_student_out(wire, tmp_path):
    for kind in ("apfl", "fedrep"):
        summary = simulate(study(kind, federation={"wire": wire}), tmp_path / kind, reporter=Reporter())
        assert set(summary["personal"]["files"]) == {"alder", "birch"}
        assert all(site["personal_dice"] is not None for site in summary["sites"].values())
