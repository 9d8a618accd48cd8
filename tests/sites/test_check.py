"""`python -m sites`: exit codes, what is said to the user, and nothing that looks like a crash."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dusss_core.config import TrainingConfig
from dusss_core.manifest import Record
from server.study.config import StudyConfig
from sites.__main__ import main
from sites.check import Finding, Report, print_report, sentences
from sites.check.report import counted
from sites.config import load_site
from tests.sites.builders import mask, picture, rows_of, save, write_rows, write_site

SPLITS = ("train", "train", "val", "test")


def check(capsys, site, *options):
    code = main(["check", str(site), "--json", *options])
    report = json.loads(capsys.readouterr().out)
    assert report["fit"] == (code == 0)
    return code, report


def levels(report, subject):
    return [finding["level"] for finding in report["findings"] if finding["subject"] == subject]


def said(report):
    return "\n".join(f"{f['message']} -> {f['remedy']}" for f in report["findings"])


def test_good_data_are_fit(tmp_path, capsys):
    site = write_site(tmp_path, rows_of(tmp_path, 24, SPLITS))
    code, report = check(capsys, site, "--set", "data.label_fraction=0.5")
    assert code == 0
    assert {finding["level"] for finding in report["findings"]} <= {"ok", "note"}
    figures = report["figures"]
    assert figures["splits"] == {"train": 12, "val": 6, "test": 6}
    assert figures["train"] == {"labelled": 6, "unlabelled": 6, "with_text": 12}
    assert [figures["text"][name] for name in ("with", "without", "distinct")] == [24, 0, 3]
    assert figures["pictures"] == {"sizes": {"48 x 40": 24}, "bits": {"8": 24}}
    assert figures["masks"]["empty_share"] == 0
    assert figures["masks"]["classes"] == [1]


def test_the_table_names_the_verdict(tmp_path, capsys):
    assert main(["check", str(write_site(tmp_path, rows_of(tmp_path, 4, SPLITS)))]) == 0
    assert "fit to train on" in capsys.readouterr().out


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_what_is_no_number_of_processes_is_refused(tmp_path, capsys, workers):
    site = write_site(tmp_path, rows_of(tmp_path, 4, SPLITS))
    assert main(["check", str(site), "--workers", workers]) == 2
    assert "--workers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "subject", "words"),
    [
        ({"mask": ""}, "labels", "trains on pseudo-labels"),
        ({"text": ""}, "text", "trains with the teacher alone"),
        ({}, "labels", "supervised only"),
        ({"patient": ""}, "patients", "no column patient"),
        ({"split": "train"}, "val", "no validation records"),
        ({"split": "train"}, "test", "absent from the evaluation"),
    ],
)
def test_what_is_lacking_is_a_warning(tmp_path, capsys, change, subject, words):
    code, report = check(capsys, write_site(tmp_path, [{**row, **change} for row in rows_of(tmp_path, 8, SPLITS)]))
    assert code == 0
    assert "warning" in levels(report, subject)
    assert words in said(report)


def test_one_record_is_a_warning(tmp_path, capsys):
    code, report = check(capsys, write_site(tmp_path, rows_of(tmp_path, 1)))
    assert code == 0
    assert "a single training record" in said(report)


def test_no_training_records_is_an_error_unless_the_site_only_evaluates(tmp_path, capsys):
    site = write_site(tmp_path, rows_of(tmp_path, 2, ("test",)))
    code, report = check(capsys, site)
    assert code == 2
    assert levels(report, "train") == ["error"]
    assert check(capsys, site, "--set", "limits.phases=[]")[0] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": "r0"}, "row 3: id 'r0' is already in row 2"),
        ({"image": "gone.png"}, "row 3: image file not found"),
        ({"patient": "p3"}, "row 5: patient 'p3' is in test, in row 3 in train"),
        ({"split": "tset"}, "row 3: unknown split 'tset'"),
    ],
)
def test_mistakes_in_the_manifest_are_errors(tmp_path, capsys, change, words):
    rows = rows_of(tmp_path, 4, SPLITS)
    rows[1] |= change
    code, report = check(capsys, write_site(tmp_path, rows))
    assert code == 2
    assert f"manifest.csv, {words}" in said(report)


def test_files_that_cannot_be_used_are_errors(tmp_path, capsys):
    rows = rows_of(tmp_path, 4, SPLITS)
    (tmp_path / "images/0.png").write_bytes((tmp_path / "images/0.png").read_bytes()[:300])
    save(tmp_path / "masks/2.png", mask(2, 30, 30))
    code, report = check(capsys, write_site(tmp_path, rows))
    assert code == 2
    assert levels(report, "files") == ["error", "error"]
    assert f"row 2: {tmp_path}/images/0.png: could not be read" in said(report)
    assert "row 4: mask" in said(report)
    assert "30 x 30 pixels" in said(report)


def test_the_same_picture_in_two_splits_is_an_error(tmp_path, capsys):
    rows = rows_of(tmp_path, 8, SPLITS)
    save(tmp_path / "images/3.png", picture(0), compress_level=0)  # other bytes, same picture
    save(tmp_path / "images/4.png", picture(1))
    code, report = check(capsys, write_site(tmp_path, rows))
    assert code == 2
    figures = report["figures"]["duplicates"]
    assert (figures["across_splits"], figures["within_split"]) == (1, 1)
    assert "row 2 = row 5" in said(report)
    assert levels(report, "duplicates")[:2] == ["error", "warning"]


def test_odd_masks_and_pictures_are_warnings(tmp_path, capsys):
    rows = rows_of(tmp_path, 4, SPLITS, height=64, width=64)
    save(tmp_path / "masks/0.png", mask(0, 64, 64) * 0)
    tiny = mask(1, 64, 64) * 0
    tiny[3, 3] = 255
    save(tmp_path / "masks/1.png", tiny)
    save(tmp_path / "images/2.png", picture(0, 64, 64) * 0 + 7)
    code, report = check(capsys, write_site(tmp_path, rows))
    assert code == 0
    assert report["figures"]["masks"]["empty_share"] == 0.25
    assert report["figures"]["masks"]["small"] == 1
    assert "1 of one value only: row 4" in said(report)
    assert "1 mask is empty" in said(report)


def test_masks_that_are_all_inverted_are_a_warning(tmp_path, capsys):
    rows = rows_of(tmp_path, 4, SPLITS)
    for i in range(4):
        save(tmp_path / f"masks/{i}.png", 255 - mask(i))
    code, report = check(capsys, write_site(tmp_path, rows))
    assert code == 0
    assert [f["rows"] for f in report["findings"] if f["kind"] == "inverted_masks"] == [[2, 3, 4, 5]]


def test_an_unknown_key_of_the_study_is_refused_with_the_nearest_name_and_what_is_the_coordinators_is_known(
    tmp_path, capsys
):
    site, study = write_site(tmp_path, rows_of(tmp_path, 24, SPLITS)), tmp_path / "study.yaml"
    for text, named in (
        ("imge: {classes: 62}", "image"),
        ("segment: {bach: 8}", "batch"),
        ("fedration: {}", "federation"),
    ):
        study.write_text(f"{text}\n")
        assert main(["check", str(site), "--study", str(study)]) == 2
        assert f"did you mean '{named}'?" in capsys.readouterr().err
    coordinators = StudyConfig.model_fields.keys() - TrainingConfig.model_fields.keys()
    study.write_text("".join(f"{section}: {{any: 1}}\n" for section in coordinators) + "image: {classes: 1}\n")
    assert main(["check", str(site), "--study", str(study)]) == 0


def test_numbered_nuclei_are_an_error_and_so_many_classes_are_none_where_the_study_has_them(tmp_path, capsys):
    rows = rows_of(tmp_path, 4, SPLITS)
    for i in range(4):
        save(tmp_path / f"masks/{i}.png", (np.arange(48 * 40).reshape(48, 40) // (32 + i)).astype(np.uint8))
    site = write_site(tmp_path, rows)
    code, report = check(capsys, site)
    assert code == 2 and "4 hold gray values (1, 2, 3, " in said(report)
    study = tmp_path / "study.yaml"
    study.write_text("image: {classes: 62}\n")
    code, report = check(capsys, site, "--study", str(study))
    assert code == 0, said(report)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "site: a\ndata: {manifets: m.csv}\nstate_dir: s\n",
            "unknown key 'data.manifets'\n  -> did you mean 'manifest'?",
        ),
        ("site: a\ndata: {manifest: m.csv}\n", "'state_dir' is missing"),
        ("site: a\ndata: {manifest: m.csv}\nstate_dir: ''\n", "'state_dir': an empty name"),
        ("site: a\ndata: {manifest: m.csv}\nstate_dir: s\nthreads: 100000\n", "'threads': "),
        ("site: a/b\ndata: {manifest: m.csv}\nstate_dir: s\n", "'site': "),
        ("site: a\ndata: {manifest: m.csv, label_fraction: 2}\nstate_dir: s\n", "'data.label_fraction': "),
        (
            "site: a\ndata: {manifest: m.csv}\nstate_dir: s\nlimits: {hours: 8-17}\n",
            'hours are "HH:MM-HH:MM"',
        ),
        (
            'site: a\ndata: {manifest: m.csv}\nstate_dir: s\nlimits: {hours: "00:00-00:00"}\n',
            "'limits.hours': hours that end when they begin are none",
        ),
        (
            "site: a\ndata: {manifest: m.csv}\nstate_dir: s\nlimits: {objectives: [dusss, mcnett]}\n",
            "'limits.objectives.1': 'mcnett' is not known [FD101]\n  -> did you mean 'mcnet'? known here: dusss, ",
        ),
        ("site: [\n", "line 2, column 1"),
    ],
)
def test_a_site_file_that_cannot_be_used_is_named(tmp_path, capsys, content, words):
    site = tmp_path / "site.yaml"
    site.write_text(content)
    assert main(["check", str(site)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {site}")
    assert words in error
    assert "Traceback" not in error


def test_paths_are_relative_to_the_site_file(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    file = tmp_path / "conf/site.yaml"
    file.write_text(
        "site: a\ndata: {manifest: ../d/m.csv}\nstate_dir: /var/a\nlimits: {hours: 20:00-06:00}\n"
        "superlink: {address: 'host:443', root_certificates: ca.crt}\n"
    )
    monkeypatch.chdir(tmp_path / "conf")
    site = load_site("site.yaml")
    assert site.data.manifest == tmp_path / "d/m.csv"
    assert str(site.state_dir) == "/var/a"
    assert site.superlink.root_certificates == tmp_path / "conf/ca.crt"
    assert site.superlink.private_key is None


def test_from_folder_to_checked_sites(tmp_path, capsys):
    for i in range(16):
        save(tmp_path / f"data/images/{i}.png", picture(i))
        save(tmp_path / f"data/masks/{i}.png", mask(i))
    assert main(["import", "folder", str(tmp_path / "data")]) == 0
    assert main(["import", "folder", str(tmp_path / "data")]) == 2
    manifest, out = str(tmp_path / "data/manifest.csv"), str(tmp_path / "sites")
    options = ["--set", "sites=2", "--set", "hold_out.test=0.2", "--set", "hold_out.val=0.2", "--out", out]
    assert main(["partition", manifest, *options]) == 0
    assert main(["partition", manifest, *options]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "sites/site_1/site.yaml")]) == 0


def test_import_takes_columns_out_of_names(tmp_path, capsys):
    save(tmp_path / "images/s7_a.png", picture(0))
    assert main(["import", "folder", str(tmp_path), "--extract", r"patient=s(\d)"]) == 0
    assert ",7," in (tmp_path / "manifest.csv").read_text()
    assert main(["import", "folder", str(tmp_path), "--force", "--extract", "patient=("]) == 2
    assert main(["import", "folder", str(tmp_path), "--force", "--extract", "patient"]) == 2


def test_a_partition_that_cannot_be_exits_with_2(tmp_path, capsys):
    manifest = write_rows(tmp_path / "m.csv", rows_of(tmp_path, 2))
    assert main(["partition", str(manifest), "--out", str(tmp_path / "o"), "--set", "sites=9"]) == 2
    assert "no training records at" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_help_is_instant():
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "sites", "--help"], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 2  # 0.1 s on an idle machine; loading numpy or pydantic would show below
    assert "python -m sites check" in done.stdout
    code = "import sys, sites.__main__ as m; m.build_parser(); print({'numpy', 'pydantic'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"


def test_one_error_is_not_called_errors(capsys):
    report = Report("alder")
    report.findings += [Finding("error", "train", "none"), Finding("warning", "val", "none")]
    print_report(report)
    assert "(1 error, 1 warning)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Finding.", "contrast cannot learn what it says"),
        ("Infecção no pulmão esquerdo.", "in a language without word lists"),
    ],
)
def test_what_sentences_cannot_teach_is_a_warning(tmp_path, capsys, text, words):
    rows = [{**row, "text": text} for row in rows_of(tmp_path, 8, SPLITS)]
    code, report = check(capsys, write_site(tmp_path, rows))
    assert code == 0 and "warning" in levels(report, "text") and words in said(report)
    assert "warning" not in levels(check(capsys, write_site(tmp_path, rows_of(tmp_path, 8, SPLITS)))[1], "text")


def test_what_is_counted_reads_as_a_person_would_say_it():
    assert counted(1, "{n} [mask is|masks are] empty") == "1 mask is empty"
    assert counted(2, "{n} [mask is|masks are] empty") == "2 masks are empty"
    plural = re.compile(r"1 (\w+s|are|have|hold|look|lie|cover|name|say)\b")
    singular = {"1 is", "1 has", "1 holds", "1 looks", "1 lies", "1 covers", "1 names"}
    for path in sorted((Path(__file__).parents[2] / "sites" / "check").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("{n}"):
                said = plural.match(counted(1, node.value))
                assert said is None or said[0] in singular, f"{path.name}: {node.value}"


def test_one_fault_and_one_record_are_told_in_the_singular(tmp_path):
    report = Report("a")
    report.say_rows("warning", "masks", "{n} [mask is|masks are] empty", "", "empty_mask", [4])
    report.say_rows("warning", "masks", "{n} [mask is|masks are] empty", "", "empty_mask", [4, 6])
    assert [finding.message for finding in report.findings] == [
        "1 mask is empty: row 4",
        "2 masks are empty: row 4, row 6",
    ]


def test_ordinary_words_that_look_like_others_are_not_called_misspelt():
    told = ["Seen through the eighth rib on the left side.", "An infeced area through the ninth rib."]
    texts = ["Eight infected areas, though small, lie in the left lung."] * 6 + told
    records = [Record(str(i), Path(f"{i}.png"), text=text, row=i + 2) for i, text in enumerate(texts)]
    report = Report("a")
    sentences.check_text(report, records)
    misspelt = [finding.message for finding in report.findings if finding.kind == "misspelt"]
    assert len(misspelt) == 1 and misspelt[0].startswith("'infeced' looks like")
