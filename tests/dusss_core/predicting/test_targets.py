"""`python -m dusss_core predict` writes over none of its sources, and no two results to one place."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dusss_core.predicting.inputs import find_jobs
from dusss_core.predicting.predict import JOURNAL
from dusss_core.predicting.targets import tails_of
from dusss_core.readers import read_mask
from tests.dusss_core.predicting.test_predict import drawn, run, write_slice
from tests.sites.builders import picture


@pytest.mark.parametrize(
    ("sources", "arguments", "over"),
    [
        (["own/a.png"], ["own/a.png", "--out", "own"], "own/a.png"),
        (["own/v.nii.gz"], ["own/v.nii.gz", "--out", "own"], "own/v.nii.gz"),
        (["A/img.png", "B/img.png"], ["A", "B/img.png", "--out", "B"], "B/img.png"),
        (["A/img.png", "B/img.png"], ["A", "B", "--out", "B"], "B: all its pictures lie in B"),
        (["A/a.png", "B/a_overlay.png"], ["A", "B/a_overlay.png", "--overlay", "--out", "B"], "B/a_overlay.png"),
        (["A/p.tif", "B/p_0001.png"], ["A", "B/p_0001.png", "--out", "B"], "B/p_0001.png"),
        (["own/a.png"], ["link/a.png", "--out", "own"], "link/a.png"),
        (["own/a.png"], ["link/a.png", "--out", "link"], "link/a.png"),
    ],
)
def test_no_source_is_written_over(model, tmp_path, monkeypatch, capsys, sources, arguments, over):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(sources):
        drawn(tmp_path / name, number)
    (tmp_path / "link").mkdir()
    (tmp_path / "link/a.png").symlink_to(tmp_path / "own/a.png")
    before = {name: (tmp_path / name).read_bytes() for name in sources}
    assert run("predict", model, *arguments) == 2
    told = capsys.readouterr().err
    assert over in told and "name another folder for --out" in told
    assert {name: (tmp_path / name).read_bytes() for name in sources} == before
    assert (tmp_path / "link/a.png").is_symlink() and not list(tmp_path.rglob(JOURNAL))


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["in/a.png", "in/a.jpg", "in/b.png"], {"a.jpg": "a", "a.png": "a_2", "b.png": "b"}),
        (["in/a.png", "in/a.jpg", "in/a_2.png"], {"a.jpg": "a", "a.png": "a_3", "a_2.png": "a_2"}),
        (
            ["in/img.png", "in/img_2.png", "more/img.png", "more/img_2.png"],
            {"in/img.png": "img", "in/img_2.png": "img_2", "more/img.png": "img_3", "more/img_2.png": "img_2_2"},
        ),
        (["in/p.tif", "in/p_0002.png", "in/p_00000.png"], {"p_0002.png": "p_0002", "p_00000.png": "p_00000"}),
    ],
)
def test_each_picture_has_a_mask_of_its_own_whatever_they_are_called(model, tmp_path, sources, names):
    shapes = {name: drawn(tmp_path / name, number) for number, name in enumerate(sources)}
    (tmp_path / "more").mkdir(exist_ok=True)
    folders = sorted({tmp_path / name.split("/")[0] for name in sources})
    assert run("predict", model, *folders, "--out", tmp_path / "out") == 0
    for source, name in names.items():
        shape = shapes[source if "/" in source else f"in/{source}"]
        assert read_mask(tmp_path / f"out/{name}.png").shape == shape


@pytest.mark.parametrize(
    ("sources", "options", "twice"),
    [
        (["p.tif", "p_0000.png"], [], "p_0000.png"),
        (["a.png", "a_overlay.png"], ["--overlay"], "a_overlay.png"),
        (["a.png", "a_probability.png"], ["--probabilities"], "a_probability.png"),
        (["v.nii.gz", "v_probabilities.nii.gz"], ["--probabilities"], "v_probabilities.nii.gz"),
        (["v.nii.gz", "v_0001.png"], ["--overlay"], "v_0001_overlay.png"),
    ],
)
def test_two_files_that_would_be_written_to_one_place_are_named_before_anything_is_written(
    model, tmp_path, capsys, sources, options, twice
):
    for number, name in enumerate(sources):
        drawn(tmp_path / "in" / name, number)
    assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out", *options) == 2
    told = capsys.readouterr().err
    assert f"out/{twice}: " in told and all(f"in/{name}" in told for name in sources)
    assert not (tmp_path / "out").exists()
    if options:
        assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out") == 0


@pytest.mark.parametrize("classes", [1, 2])
def test_all_that_is_written_was_looked_at_before(student_file, tmp_path, classes):
    for name in ("a.png", "p.tif", "v.nii.gz"):
        drawn(tmp_path / "in" / name)
    write_slice(tmp_path / "in/d.dcm", picture(1, 40, 36).astype(np.uint16) * 4)
    model = student_file(image={"classes": classes})
    assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out", "--overlay", "--probabilities") == 0
    tails = {
        job.name: [re.escape(tail).replace(r"\#", r"_\d{4}") for tail in tails_of(job, classes, True, True)]
        for job in find_jobs([tmp_path / "in"], tmp_path / "out")
    }
    assert len(tails) == 4
    for path in (tmp_path / "out").iterdir():
        if path.name != JOURNAL:
            name = re.match("[a-z]", path.name)[0]
            assert any(re.fullmatch(tail, path.name.removeprefix(name)) for tail in tails[name]), path


@pytest.mark.parametrize(
    ("source", "stranger", "options"),
    [
        ("a.png", "a.png", []),
        ("a.png", "a_overlay.png", ["--overlay"]),
        ("p.tif", "p_0001.png", []),
        ("v.nii.gz", "v.nii.gz", []),
        ("deep/a.png", "deep/a.png", []),
    ],
)
def test_files_that_no_prediction_wrote_are_not_written_over(model, tmp_path, capsys, source, stranger, options):
    drawn(tmp_path / "in" / source)
    drawn(tmp_path / "out" / stranger, 7)
    before = (tmp_path / "out" / stranger).read_bytes()
    assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out", *options) == 2
    told = capsys.readouterr().err
    assert f"out/{stranger}: it is there already" in told and "name another folder for --out" in told
    assert (tmp_path / "out" / stranger).read_bytes() == before and not list(tmp_path.rglob(JOURNAL))
    (tmp_path / "out" / stranger).unlink()
    for _ in range(2):
        assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out", *options) == 0


def test_the_mask_of_another_picture_of_the_same_name_is_not_written_over(model, tmp_path, capsys):
    for number, name in enumerate(("A/x.png", "B/x.png")):
        drawn(tmp_path / name, number)
    assert run("predict", model, tmp_path / "A", "--out", tmp_path / "out") == 0
    before = (tmp_path / "out/x.png").read_bytes()
    assert run("predict", model, tmp_path / "B", "--out", tmp_path / "out") == 2
    assert f"it was predicted of {tmp_path / 'A/x.png'}" in capsys.readouterr().err
    assert (tmp_path / "out/x.png").read_bytes() == before
    (tmp_path / "A").rename(tmp_path / "moved")
    drawn(tmp_path / "moved/x.png", 3)
    assert run("predict", model, tmp_path / "moved", "--out", tmp_path / "out") == 0


def test_what_a_run_that_was_cut_off_left_without_a_line_is_no_strangers(model, tmp_path, monkeypatch):
    for name in ("a.png", "v.nii.gz"):
        drawn(tmp_path / "in" / name)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("dusss_core.predicting.predict._Journal.add", killed)
        run("predict", model, tmp_path / "in", "--out", tmp_path / "out", "--overlay")
    assert (tmp_path / "out/a.png").is_file() and not (tmp_path / "out" / JOURNAL).exists()
    assert run("predict", model, tmp_path / "in", "--out", tmp_path / "out", "--overlay") == 0
    assert {path.name for path in (tmp_path / "out").glob(".*")} == set()
