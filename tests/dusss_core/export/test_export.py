"""What is exported gives the student's own probabilities, says how it is used, and is compared before it is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

import dusss_core
from dusss_core.__main__ import main
from dusss_core.build import build_student
from dusss_core.errors import UserError
from dusss_core.export import export, graph
from dusss_core.export.card import card
from dusss_core.student import About, Student
from dusss_core.student.file import KEY
from tests.dusss_core.student.conftest import make_config, student_file  # noqa: F401


def of_network(student, picture: np.ndarray) -> np.ndarray:
    """B x channels x H x W in [0, 1] to probabilities, written out anew."""
    image = student.about.image
    with torch.no_grad():
        logits = student.network((torch.from_numpy(picture) - image.mean) / image.std)
    return (logits.sigmoid() if image.classes == 1 else logits.softmax(1)).numpy()


PICTURES = [
    np.random.default_rng(i).random(shape, dtype=np.float32) for i, shape in enumerate([(1, 32, 32), (3, 96, 64)])
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"image": {"classes": 2}}])
def test_onnx_gives_the_same_in_onnxruntime_at_two_numbers_and_sizes(student_file, tmp_path, changes):  # noqa: F811
    import onnxruntime

    student = dusss_core.load(student_file(**changes), "cpu")
    assert "at most" in export(student, "onnx", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for pictures in PICTURES:
        pictures = pictures[:, None]
        (found,) = session.run(None, {"picture": pictures})
        assert np.abs(found - of_network(student, pictures)).max() < 1e-4
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told[KEY])["study"] == "tiny"


def test_torchscript_gives_the_same_at_two_numbers_and_sizes(student_file, tmp_path):  # noqa: F811
    student = dusss_core.load(student_file(image={"classes": 2}), "cpu")
    export(student, "torchscript", tmp_path / "model.pt")
    extra = {KEY: ""}
    loaded = torch.jit.load(str(tmp_path / "model.pt"), _extra_files=extra)
    for pictures in PICTURES:
        pictures = pictures[:, None]
        assert np.abs(loaded(torch.from_numpy(pictures)).numpy() - of_network(student, pictures)).max() < 1e-4
    assert json.loads(extra[KEY])["image"]["classes"] == 2


def test_a_graph_that_gives_something_else_is_not_written(student_file, tmp_path, monkeypatch):  # noqa: F811
    student = dusss_core.load(student_file(), "cpu")
    trace = torch.jit.trace

    def wrong(module, example):
        return trace(torch.nn.Sequential(module, torch.nn.Threshold(0.5, 0.0)), example)

    monkeypatch.setattr(torch.jit, "trace", wrong)
    with pytest.raises(UserError, match="other probabilities"):
        graph.write_torchscript(student, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("to", ["onnx", "torchscript", "monai-bundle"])
@pytest.mark.parametrize("network", ["early_fusion", "lvit", "vilt"])
def test_a_network_that_takes_sentences_is_refused_by_name(tmp_path, to, network):
    settings = {"network": network, "layers": 1, "patch": 16}
    config = make_config(student=settings, method={"objective": "supervised_with_text"})
    tensors = dict(build_student(config).state_dict())
    student = Student(About.of(config, layers="shared"), tensors, "cpu")
    with pytest.raises(UserError, match=f"{network} takes a sentence"):
        export(student, to, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_an_unfitted_student_is_not_exported(student_file, tmp_path):  # noqa: F811
    student = dusss_core.load(student_file(layers="unfitted"), "cpu")
    for to in ("onnx", "torchscript"):
        with pytest.raises(UserError, match="fitted"):
            export(student, to, tmp_path / "x")


SUMMARY = {
    "config_digest": "a" * 64,
    "sites": {
        "north": {"n_labeled": 20, "n_unlabeled": 140, "n_test": 40, "dice": 0.712, "iou": 0.6, "hd95": 6.24},
        "south <script>": {"n_records": 500, "n_test": None, "dice": None, "iou": None, "hd95": None},
    },
    "global": {"dice_mean": 0.712, "dice_worst": 0.712},
    "outside": {"sites": {"south": {"privacy": {"epsilon": 8, "delta": 1e-5, "spent": 7.99}}}},
}


def test_a_card_tells_the_figures_of_the_run_and_its_head_is_yaml(student_file, tmp_path):  # noqa: F811
    model = student_file(image={"names": ["infection"]})
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    assert main(["export", str(model), "--to", "card", "--out", str(tmp_path / "card.md"), "--license", "mit"]) == 0
    text = (tmp_path / "card.md").read_text()
    _, head, body = text.split("---\n", 2)
    head = yaml.safe_load(head)
    assert (head["license"], head["pipeline_tag"]) == ("mit", "image-segmentation")
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.712
    for told in (
        "infection",
        "a" * 64,
        "| north | 20, 140 | 40 | 0.712 | 0.600 | 6.2 |",
        "epsilon 7.99 of 8.00",
        "500 declared",
    ):
        assert told in body, told
    assert "<script>" not in text
    assert "http" not in text
    (tmp_path / "students").mkdir()  # a simulated site's own, which lies a folder deeper
    one = model.rename(tmp_path / "students" / "north.safetensors")
    assert main(["export", str(one), "--to", "card", "--out", str(tmp_path / "north.md")]) == 0
    assert "| north | 20, 140 | 40 | 0.712" in (tmp_path / "north.md").read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["card", "--run", "nosuch"], "--run nosuch: no summary.json"),
        (["onnx", "--run", "."], "--run: goes with --to card"),
        (["onnx", "--license", "mit"], "--license: goes with --to card or monai-bundle"),
    ],
    ids=["no run", "run", "license"],
)
def test_an_option_that_would_do_nothing_is_refused(student_file, tmp_path, capsys, options, told):  # noqa: F811
    model = student_file()
    assert main(["export", str(model), "--out", str(tmp_path / "out"), "--to", *options]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_card_has_intervals_and_each_class_where_the_summary_has_them(student_file):  # noqa: F811
    names = ["liver", "spleen"]
    student = dusss_core.load(student_file(image={"classes": 2, "names": names}), "cpu")
    north = {"n_test": 40, "dice": 0.71, "dice_1": 0.8, "dice_2": None, "dice_interval": [0.65, 0.768]}
    south = {"n_test": 9, "dice": 0.5, "dice_1": 0.25, "dice_2": 0.75, "dice_interval": "<b>"}
    summary = {"sites": {"north": north}, "external_test": {"south": south}, "global": {"dice_mean": 0.71}}
    text = card(student, summary, "mit")
    assert "| 40 | 0.710 [0.650, 0.768] |" in text and "| 9 | 0.500 |" in text and "<b>" not in text
    assert "bootstrap intervals" in text
    table = text.split("Dice of each class")[1].split("## ")[0]
    assert "| site | liver | spleen |" in table
    assert "| north | 0.800 | not known |" in table and "| south | 0.250 | 0.750 |" in table
    results = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
    assert [(one["dataset"]["name"], one["metrics"][0]["value"]) for one in results[1:]] == [
        ("test pictures of north", 0.71),
        ("test pictures of south", 0.5),
    ]
    without = card(student, {"sites": {"north": {"n_test": 40, "dice": 0.71}}}, "mit")
    assert "bootstrap" not in without and "Dice of each class" not in without


@pytest.mark.parametrize("layers", ["shared", "site", "fitted", "initial", "unfitted"])
def test_a_card_gives_no_file_figures_that_are_not_its_own(student_file, layers):  # noqa: F811
    student = dusss_core.load(student_file(layers=layers), "cpu")
    student.about = student.about.model_copy(update={"site": "north" if layers == "site" else None})
    sites = {"north": {"n_test": 40, "dice": 0.71}, "south": {"n_test": 9, "dice": 0.5}}
    text = card(student, {"sites": sites, "global": {"dice_mean": 0.605, "dice_worst": 0.5}}, "mit")
    assert ("model-index" in text, "and not of this file" in text) == (
        layers == "shared",
        layers not in ("shared", "site"),
    )
    assert ("tested at the sites above" in text) == (layers in ("shared", "site"))
    assert "| north |" in text and ("| south |" in text, "0.605" in text) == ((layers != "site"),) * 2


def test_a_card_of_a_student_with_a_head_of_one_site_gives_that_sites_figures(student_file):  # noqa: F811
    student = dusss_core.load(student_file(layers="shared"), "cpu")
    student.about = student.about.model_copy(update={"site": "north"})
    sites = {"north": {"n_test": 40, "dice": 0.71}, "south": {"n_test": 9, "dice": 0.5}}
    text = card(student, {"sites": sites, "global": {"dice_mean": 0.605, "dice_worst": 0.5}}, "mit")
    assert "| north |" in text and "south" not in text and "0.605" not in text and "model-index" not in text


@pytest.mark.parametrize(
    ("preset", "learnt", "model"),
    [("dusss", "dusss", True), ("mean_teacher", "mean_teacher", False), ("supervised", "supervised", False)],
)
def test_a_card_tells_of_a_vision_language_model_where_the_study_has_one(student_file, preset, learnt, model):  # noqa: F811
    text = card(dusss_core.load(student_file(method={"preset": preset}), "cpu"), {}, "mit")
    assert f"| learnt from | {learnt}, round" in text and ("vision-language model" in text) == model


def test_figures_of_another_study_do_not_come_into_a_card(student_file, tmp_path, capsys):  # noqa: F811
    model = student_file()
    (tmp_path / "summary.json").write_text(json.dumps({**SUMMARY, "config_digest": "b" * 64}))
    assert main(["export", str(model), "--to", "card", "--out", str(tmp_path / "card.md")]) == 0
    assert "another study" in capsys.readouterr().out
    assert "0.712" not in (tmp_path / "card.md").read_text()


def test_a_card_says_that_an_outsider_must_fit(student_file):  # noqa: F811
    assert "must be fitted" in card(dusss_core.load(student_file(layers="unfitted"), "cpu"), {}, "mit")


@pytest.mark.parametrize(
    ("to", "out"),
    [
        ("card", "README.md"),
        ("card", "student.safetensors"),
        ("torchscript", "student.safetensors"),
        ("torchscript", "other.pt"),
        ("monai-bundle", "."),
    ],
)
def test_an_export_is_written_over_no_other_file(student_file, tmp_path, capsys, to, out):  # noqa: F811
    command = ["export", str(student_file()), "--to", to, "--out"]
    for name in ("README.md", "docs/README.md", "other.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("My own.")
    there = [path for path in tmp_path.rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in there]
    assert main([*command, str(tmp_path / out)]) == 2
    assert "it is there already" in capsys.readouterr().err
    assert [path.read_bytes() for path in there] == before
    assert [main([*command, str(tmp_path / "new")]) for _ in range(2)] == [0, 0]
