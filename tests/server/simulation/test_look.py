"""python -m server look and python -m client report: pictures with what the models mark, that ask for nothing."""

from __future__ import annotations

import json
import re
import shutil
import stat

import numpy as np
import pytest

import dusss_core
from client.__main__ import main as client
from client.report.sheet import STUDENT, TEACHER, TEXT_MASK, Models, make_sheet
from dusss_core.files import digest_of_tensors
from dusss_core.student import read_student, read_vlm
from server.__main__ import main as server
from server.runs.checkpoints import read_model
from server.runs.events import Reporter
from server.simulation.local import load_local
from server.simulation.look import PAGE, look
from server.simulation.simulate import simulate
from tests.chromium import console_of, needs_chromium, pixels_of, printed
from tests.server.conftest import HOSPITALS, make_study

ROUNDS = {"pretrain__rounds": 1, "segment__rounds": 1}
CEDAR = {"name": "cedar", "train": 0, "val": 0, "test": 5}
"""It only evaluates, so that it has no layers of its own."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two hospitals that keep their own normalisation layers, and of one that only evaluates."""
    folder = tmp_path_factory.mktemp("look") / "run"
    simulate(make_study([*HOSPITALS, CEDAR], local_norm=True, **ROUNDS), folder, reporter=Reporter())
    look(folder, say=lambda line: None)
    return folder


def page_of(run) -> str:
    return (run / PAGE).read_text(encoding="utf-8")


def test_the_page_has_the_figures_that_the_sites_sent(run):
    summary, page = json.loads((run / "summary.json").read_text()), page_of(run)
    for name, site in summary["sites"].items():
        part = page.split(f"<h2>{name}</h2>")[1].split("<h2>")[0]
        shown = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)<small>", part))
        assert shown["Student"] == f"{site['dice']:.3f}"
        assert shown["Text-guided mask"] == f"{summary['text_mask'][name]:.3f}"
        assert "Teacher" in shown
        assert part.count("<article>") == 6
        assert "6 test pictures" in part


def test_worst_median_and_best_are_the_pictures_with_that_dice(run):
    study = make_study(local_norm=True, **ROUNDS)
    split = load_local(run / "sites" / "alder" / "site.yaml", study).splits["test"]
    from server.simulation.look import _finished_student
    from sites.config import load_site

    key = json.loads((run / "run.json").read_text())["run_key"]
    student = _finished_student(study.training(), load_site(run / "sites" / "alder" / "site.yaml"), key)
    sheet = make_sheet("alder", split, "test", Models(student=student), each=1)
    dice = sheet.figures[STUDENT]
    assert [row.rank for row in sheet.rows] == ["worst", "median", "best"]
    shown = [row.dice[STUDENT] for row in sheet.rows]
    assert shown[0] == dice.min() and shown[2] == dice.max() and shown[0] <= shown[1] <= shown[2]
    for row in sheet.rows:
        overlap = np.count_nonzero(row.truth.astype(bool) & row.masks[STUDENT].astype(bool))
        both = np.count_nonzero(row.truth) + np.count_nonzero(row.masks[STUDENT])
        assert row.dice[STUDENT] == pytest.approx(2 * overlap / both if both else 1.0)
        assert np.array_equal(row.truth, split.masks[split.ids.index(row.id)])


def test_pages_ask_for_nothing_and_only_their_owner_reads_them(run, capsys):
    assert client(["report", "--site", str(run / "sites" / "alder" / "site.yaml")]) == 0
    own = next((run / "sites" / "alder" / "state" / "reports").glob("tiny-*.html"))
    assert str(own) in capsys.readouterr().out
    assert not (run / "sites" / "cedar" / "state" / "reports").exists()  # no message of a study has it written
    assert stat.S_IMODE(own.parent.stat().st_mode) == 0o700
    for page in (run / PAGE, own):
        assert stat.S_IMODE(page.stat().st_mode) == 0o600
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text and "default-src 'none'" in text
        assert set(re.findall(r'(?:src|href)="([a-z]+):', text)) == {"data"}
        assert not re.search(r"https?://|url\(|@import", text)


def test_a_hospital_sees_what_the_simulation_sees(run):
    assert client(["report", "--site", str(run / "sites" / "birch" / "site.yaml"), "--each", "2"]) == 0
    own = next((run / "sites" / "birch" / "state" / "reports").glob("tiny-*.html")).read_text(encoding="utf-8")
    part = page_of(run).split("<h2>birch</h2>")[1].split("<h2>")[0]
    for what in (r"<dt>(.*?)</dt><dd>(.*?)<small>", r'<img src="(.*?)"', r"<figcaption><b>(.*?)</b><br>(.*?)</f"):
        assert re.findall(what, own) == re.findall(what, part)


def test_a_run_that_trains_is_shown_on_validation_pictures(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    (tmp_path / "run" / "checkpoints" / "student.safetensors").unlink()  # the phase goes on
    page = look(tmp_path / "run", say=lambda line: None).read_text(encoding="utf-8")
    assert "in training" in page and "6 val pictures" in page and "test pictures" not in page
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("segment-*"):
        checkpoint.unlink()
    page = look(tmp_path / "run", say=lambda line: None).read_text(encoding="utf-8")
    assert "ranked by the Dice of the column " in page
    assert "The student is that of" not in page


def test_looking_changes_nothing_of_the_run(run):
    def stamps():
        files = [*(run / "checkpoints").iterdir(), *(run / "sites").glob("*/state/studies/**/*"), run / "metrics.jsonl"]
        return {file: file.stat().st_mtime_ns for file in files if file.is_file()}

    before = stamps()
    look(run, each=1, most=2, say=lambda line: None)
    assert stamps() == before and len(before) > 5
    assert "2 of 6 test pictures" in page_of(run)
    look(run, say=lambda line: None)


def test_what_a_user_can_mend_is_told(run, tmp_path, capsys):
    assert server(["look", str(tmp_path)]) == 2
    assert "not a folder of a run" in capsys.readouterr().err
    for name in ("config.yaml", "run.json"):
        shutil.copy(run / name, tmp_path / name)
    assert server(["look", str(tmp_path)]) == 2
    assert "python -m client report" in capsys.readouterr().err
    shutil.copytree(run / "sites", tmp_path / "sites")
    assert server(["look", str(tmp_path)]) == 2
    assert "no round is finished yet" in capsys.readouterr().err
    assert client(["report", "--site", str(run / "sites" / "alder" / "site.yaml"), "--study", "other"]) == 2
    assert "no finished student of study other (studies: tiny)" in capsys.readouterr().err
    assert server(["look", str(run), "--each", "0"]) == 2


def test_each_site_keeps_its_whole_vision_language_model(run):
    about, tensors = read_vlm(run / "students" / "alder.vlm.safetensors")
    shared = read_model(run / "checkpoints" / "vlm.safetensors")
    assert about.layers == "site" and about.site == "alder"
    assert shared.keys() < tensors.keys()
    assert digest_of_tensors({name: tensors[name] for name in shared}) == digest_of_tensors(shared)
    assert not (run / "student.vlm.safetensors").exists()


def test_a_site_that_only_evaluates_has_a_student_that_is_fitted_to_its_pictures(run):
    about, tensors = read_student(run / "students" / "cedar.safetensors")
    assert (about.layers, about.fitted_on, about.site) == ("fitted", 5, None)
    pictures = load_local(run / "sites" / "cedar" / "site.yaml", make_study(local_norm=True)).splits["test"].images
    outsider = dusss_core.load(run / "student.safetensors", "cpu").fit([picture[0] for picture in pictures])
    assert digest_of_tensors(outsider.tensors()) == digest_of_tensors(tensors)
    part = page_of(run).split("<h2>cedar</h2>")[1]
    assert "5 test pictures" in part and "<dt>Student</dt>" in part and "<dt>Text-guided mask</dt>" not in part
    assert not (run / "students" / "cedar.vlm.safetensors").exists()


@needs_chromium
def test_a_browser_has_nothing_to_say_of_the_page(run, tmp_path):
    page = run / PAGE
    shots = {
        name: (tmp_path / f"{name}.png", options)
        for name, options in {"light": {}, "dark": {"dark": True}, "narrow": {"width": 500}}.items()
    }
    for shot, options in shots.values():
        assert console_of(page, shot=shot, **options) == []
    assert pixels_of(shots["light"][0])[0, 0].min() > 240
    assert pixels_of(shots["dark"][0])[0, 0].max() < 40
    assert printed(page, tmp_path / "page.pdf") == []
    assert (tmp_path / "page.pdf").stat().st_size > 10_000
    bad = tmp_path / "bad.html"
    bad.write_text(page_of(run).replace("data:image/png;base64,", "http://127.0.0.1:9/", 1), encoding="utf-8")
    assert len(console_of(bad)) == 1


def test_models_that_a_site_lacks_are_left_out(run):
    study = make_study(local_norm=True, **ROUNDS)
    split = load_local(run / "sites" / "alder" / "site.yaml", study).splits["val"]
    sheet = make_sheet("alder", split, "val", Models())
    assert sheet.columns == [] and sheet.judge == "" and len(sheet.rows) == 6
    assert not {STUDENT, TEACHER, TEXT_MASK} & sheet.figures.keys()
