"""predict --text: each picture with its own sentence, as a study measures it, and nothing wrong goes unsaid."""

from __future__ import annotations

import json
import re

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

import dusss_core
from dusss_core.__main__ import main
from dusss_core.build import build_student, build_vlm
from dusss_core.errors import UserError
from dusss_core.inference import predict_logits
from dusss_core.metrics import to_classes
from dusss_core.models.weights import load_tensors
from dusss_core.predicting.inputs import find_jobs
from dusss_core.predicting.sentences import sentences_for
from dusss_core.student import About, read_student, vlm_path, write_student, write_vlm
from dusss_core.student.vlm import split_of
from dusss_core.text.bank import build_text_bank
from dusss_core.training import text_guided_masks, told_logits
from tests import once
from tests.dusss_core.student.conftest import make_config
from tests.dusss_core.test_readers import write_dicom
from tests.sites.builders import picture, save

LEFT, RIGHT = "infected area in the left lung.", "two areas in the right lung."
SAID = {"a": LEFT, "b": RIGHT, "c": LEFT}
TOWERS = {"vlm": {"image_encoder": "test_resnet", "dim": 16, "decoder_width": 16, "patch_stride": 8}}


@pytest.fixture(scope="module", autouse=True)
def encoded_once():
    with pytest.MonkeyPatch.context() as patch:
        once.install(patch)
        yield


@pytest.fixture
def model(student_file):
    """A student, and a vision-language model beside it whose logits are as large as the student's."""
    path = student_file(**TOWERS)
    config = make_config(**TOWERS)
    tensors = dict(build_vlm(config).state_dict())
    tensors = {name: 3 * value if name.endswith("bias") else value for name, value in tensors.items()}
    write_vlm(vlm_path(path), config, tensors, "shared", study_digest="a" * 64, round=2)
    return path, config, tensors


@pytest.fixture
def pictures(tmp_path):
    return {
        name: picture(i, 32, 32) for i, name in enumerate(SAID) if save(tmp_path / f"in/{name}.png", picture(i, 32, 32))
    }


def sheet(tmp_path, rows, header="image,text"):
    path = tmp_path / "sheet.csv"
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


def run(path, tmp_path, *more, out="out"):
    return main(
        ["predict", str(path), str(tmp_path / "in"), "--out", str(tmp_path / out), "--device", "cpu", *map(str, more)]
    )


def masks(tmp_path, out="out"):
    return {name: np.asarray(Image.open(tmp_path / out / f"{name}.png")) > 0 for name in SAID}


def test_the_sum_of_both_logits_decides_as_in_a_study(model, pictures, tmp_path):
    path, config, tensors = model
    assert run(path, tmp_path, "--text", sheet(tmp_path, SAID.items())) == 0
    images = np.stack(list(pictures.values()))[:, None]
    split = split_of(images, list(SAID.values()), sorted({LEFT, RIGHT}))
    bank = build_text_bank(split.sentences, config.vlm.text, None, "cpu")
    student = build_student(config)
    load_tensors(student, read_student(path)[1])
    plain = predict_logits(student, images, config.image, "cpu", 8)
    text = text_guided_masks(config, tensors, split, bank)
    expected = to_classes(plain.astype(np.float32) + text)
    for found, mask, alone in zip(masks(tmp_path).values(), expected, to_classes(plain), strict=True):
        assert np.array_equal(found, mask)
        assert not np.array_equal(found, alone)


def test_a_large_picture_and_its_sentence_are_seen_through_the_same_window(student_file, tmp_path):
    tiles = {"image": {"size": 32, "mode": "tile"}, **TOWERS}
    path, config = student_file(**tiles), make_config(**tiles)
    tensors = dict(build_vlm(config).state_dict())
    tensors = {name: 3 * value if name.endswith("bias") else value for name, value in tensors.items()}
    write_vlm(vlm_path(path), config, tensors, "shared", study_digest="a" * 64, round=2)
    sizes = {"a": (48, 64), "b": (32, 32), "c": (80, 33)}
    drawn = {name: picture(i, *size) for i, (name, size) in enumerate(sizes.items())}
    for name, pixels in drawn.items():
        save(tmp_path / f"in/{name}.png", pixels)
    assert run(path, tmp_path, "--text", sheet(tmp_path, SAID.items())) == 0
    images = [pixels[None] for pixels in drawn.values()]
    split = split_of(images, list(SAID.values()), sorted({LEFT, RIGHT}))
    student = build_student(config)
    load_tensors(student, read_student(path)[1])
    plain = predict_logits(student, images, config.image, "cpu", 8)
    text = text_guided_masks(config, tensors, split, build_text_bank(split.sentences, config.vlm.text, None, "cpu"))
    for name, one, other in zip(SAID, plain, text, strict=True):
        found = masks(tmp_path)[name]
        assert found.shape == drawn[name].shape
        # to the last bit but where the halves of a sum round across nought
        assert (found != to_classes(one[None].astype(np.float32) + other[None])[0]).mean() < 0.002
        assert (found != to_classes(one[None])[0]).mean() > 0.02


def test_a_network_that_takes_sentences_is_given_them_without_another_model(pictures, tmp_path):
    config = make_config(student={"network": "early_fusion"}, method={"objective": "early_fusion"})
    path, fresh = tmp_path / "student.safetensors", build_student(config)
    draws = predict_logits(fresh, np.stack(list(pictures.values()))[:, None], config.image, "cpu", 8)
    fresh.unet.head.bias.data -= float(np.median(draws))  # masks have both
    write_student(path, About.of(config, layers="shared"), dict(fresh.state_dict()))
    assert run(path, tmp_path, "--text", sheet(tmp_path, SAID.items())) == 0
    images = np.stack(list(pictures.values()))[:, None]
    split = split_of(images, list(SAID.values()), sorted({LEFT, RIGHT}))
    student = build_student(config).eval()
    load_tensors(student, read_student(path)[1])
    bank = build_text_bank(split.sentences, config.vlm.text, None, "cpu", augmented=False)
    expected = to_classes(told_logits(config, student, split, bank, "cpu"))
    alone = to_classes(predict_logits(student, images, config.image, "cpu", 8))
    assert np.array_equal(np.stack(list(masks(tmp_path).values())), expected > 0)
    assert not np.array_equal(expected, alone)


@pytest.mark.parametrize("header", ["image,text", "Id,Description", "filename,report", "NAME,findings,other"])
def test_columns_are_those_that_an_import_takes(model, pictures, tmp_path, header):
    rows = [(f"x/{name.upper()}.PNG", said, "") for name, said in SAID.items()]
    assert run(model[0], tmp_path, "--text", sheet(tmp_path, rows, header)) == 0
    assert run(model[0], tmp_path, "--text", sheet(tmp_path, SAID.items()), out="plain") == 0
    for one, other in zip(masks(tmp_path).values(), masks(tmp_path, "plain").values(), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("rows", "header", "told"),
    [
        ([("a", LEFT), ("b", RIGHT), ("c", LEFT), ("d", LEFT)], "image,text", "row 5: 'd' is none of the pictures"),
        ([("a", LEFT), ("b", ""), ("c", LEFT)], "image,text", "row 3: 'b' has no sentence"),
        ([("a", LEFT), ("b", RIGHT)], "image,text", "no row for 1 of the pictures: c"),
        (
            [("a", LEFT), ("a.png", RIGHT), ("b", LEFT), ("c", LEFT)],
            "image,text",
            "row 3: 'a.png' is named in row 2 too",
        ),
        ([("a", LEFT), ("", RIGHT), ("b", LEFT), ("c", LEFT)], "image,text", "row 3: a sentence without a picture"),
        ([("a", LEFT)], "picture,text", "row 1: no column that names the pictures; it has: picture, text"),
        ([("a", LEFT)], "image,words", "row 1: no column of sentences; it has: image, words"),
    ],
)
def test_a_sheet_that_does_not_fit_is_told_by_row_and_nothing_is_written(
    model, pictures, tmp_path, capsys, rows, header, told
):
    assert run(model[0], tmp_path, "--text", sheet(tmp_path, rows, header)) == 2
    error = capsys.readouterr().err
    assert told in error and "->" in error
    assert not list((tmp_path / "out").glob("*.png")) if (tmp_path / "out").exists() else True


def test_with_partial_a_picture_without_a_sentence_is_seen_alone(model, pictures, tmp_path):
    some = sheet(tmp_path, [("a", LEFT), ("other", RIGHT)])
    assert run(model[0], tmp_path, "--text", some, "--partial") == 0
    assert run(model[0], tmp_path, out="plain") == 0
    told, plain = masks(tmp_path), masks(tmp_path, "plain")
    assert not np.array_equal(told["a"], plain["a"])
    assert np.array_equal(told["b"], plain["b"]) and np.array_equal(told["c"], plain["c"])


def test_a_changed_sentence_is_done_again_and_no_other(model, pictures, tmp_path):
    def names():
        lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
        return [json.loads(line)["name"] for line in lines]

    for rows, done in (
        (SAID, ["a", "b", "c"]),
        (SAID, ["a", "b", "c"]),
        ({**SAID, "b": LEFT}, ["a", "b", "c", "b"]),
    ):
        assert run(model[0], tmp_path, "--text", sheet(tmp_path, rows.items())) == 0
        assert names() == done
    assert LEFT not in (tmp_path / "out/predictions.jsonl").read_text()
    assert run(model[0], tmp_path) == 0
    assert names()[4:] == ["a", "b", "c"]


def test_pages_of_a_file_have_sentences_of_their_own(model, tmp_path):
    pages = [Image.fromarray(picture(i, 32, 32)) for i in range(2)]
    (tmp_path / "in").mkdir()
    pages[0].save(tmp_path / "in/p.tif", save_all=True, append_images=pages[1:])
    rows = [("p.tif#0", LEFT), ("p#1", RIGHT)]
    assert run(model[0], tmp_path, "--text", sheet(tmp_path, rows)) == 0
    student = dusss_core.load(model[0], "cpu")
    for i, text in enumerate((LEFT, RIGHT)):
        found = np.asarray(Image.open(tmp_path / f"out/p_{i:04d}.png")) > 0
        assert np.array_equal(found, student.predict(picture(i, 32, 32), text).mask > 0)
        assert not np.array_equal(found, student.predict(picture(i, 32, 32)).mask > 0)


@pytest.mark.parametrize("kind", ["tif", "nii.gz", "dcm"])
@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("p.KIND#0", LEFT), ("p#1", RIGHT), ("p.KIND#2", LEFT)], "row 4: 'p.KIND#2' is none of the pictures"),
        ([("p.KIND", LEFT), ("p.KIND#2", LEFT)], "row 3: 'p.KIND#2' is none of the pictures"),
        ([("p.KIND#1", LEFT)], "no row for 1 of the pictures: p#0"),
        ([("p.KIND#0", LEFT), ("p.KIND#x=1", LEFT), ("p.KIND#1", LEFT)], "row 3: 'p.KIND#x=1' is none of the pictures"),
        ([("p.KIND", LEFT), ("p.KIND#1", RIGHT)], None),
        ([("p.KIND#0", LEFT), ("p.KIND#1", RIGHT)], None),
    ],
)
def test_each_page_slice_or_frame_has_a_row_and_each_row_one(tmp_path, kind, rows, told):
    drawn = np.stack([picture(i, 32, 32) for i in range(2)])
    path = tmp_path / f"in/p.{kind}"
    path.parent.mkdir()
    if kind == "tif":
        pages = [Image.fromarray(page) for page in drawn]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    elif kind == "dcm":
        write_dicom(path, drawn.astype(np.uint16), NumberOfFrames=2)
    else:
        nibabel.save(nibabel.Nifti1Image(drawn.transpose(1, 2, 0).astype(np.int16), np.eye(4)), path)
    said = sheet(tmp_path, [(name.replace("KIND", kind), text) for name, text in rows])
    jobs = find_jobs([tmp_path / "in"], tmp_path / "out")
    if told is None:
        sentence = sentences_for(said, jobs)
        assert [sentence(jobs[0], i) for i in range(2)] == [LEFT, RIGHT]
        return
    with pytest.raises(UserError, match=re.escape(told.replace("KIND", kind))):
        sentences_for(said, jobs)
    sentences_for(said, jobs, partial=True)


def test_a_file_that_cannot_be_counted_keeps_its_rows_since_reading_it_will_say_why(tmp_path):
    save(tmp_path / "in/a.png", picture(1, 32, 32))
    (tmp_path / "in/v.nii.gz").write_bytes(b"nothing")
    sentence = sentences_for(
        sheet(tmp_path, [("a", LEFT), ("v.nii.gz#3", RIGHT)]), find_jobs([tmp_path / "in"], tmp_path / "out")
    )
    assert sentence(find_jobs([tmp_path / "in/a.png"], tmp_path / "out")[0], 0) == LEFT


def test_a_model_that_is_missing_or_anothers_is_named(model, student_file, pictures, tmp_path, capsys):
    path, config, tensors = model
    said = sheet(tmp_path, SAID.items())
    write_vlm(tmp_path / "other.safetensors", config, tensors, "shared", study_digest="b" * 64)
    assert run(path, tmp_path, "--text", said, "--vlm", tmp_path / "other.safetensors") == 2
    assert "of study tiny (bbbbbbbb)" in capsys.readouterr().err
    assert run(path, tmp_path, "--text", said, "--vlm", path) == 2
    assert "not a vision-language model's file" in capsys.readouterr().err
    lacking = {name: value for name, value in tensors.items() if name != "grounding.bias"}
    lacking.pop(sorted(lacking)[0])
    write_vlm(vlm_path(path), config, lacking, "shared", study_digest="a" * 64)
    assert run(path, tmp_path, "--text", said) == 2
    assert "it lacks" in capsys.readouterr().err
    vlm_path(path).unlink()
    assert run(path, tmp_path, "--text", said) == 2
    error = capsys.readouterr().err
    assert "student.vlm.safetensors: no such file" in error and "NAME.vlm.safetensors" in error
    assert run(path, tmp_path) == 0


@pytest.mark.parametrize("option", [["--partial"], ["--vlm", "vlm.safetensors"], ["--encoder", "bert"]], ids=str)
def test_what_is_said_of_sentences_is_refused_where_there_are_none(model, tmp_path, capsys, option):
    """The pictures would be seen alone, and nothing would tell that the sheet was forgotten."""
    assert run(model[0], tmp_path, *option) == 2
    assert f"{option[0]}: goes with --text" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_text_encoder_is_fetched_unasked(model, pictures, tmp_path, capsys, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, **options):
        asked.append(options.get("local_files_only", False))
        raise OSError("not here")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    path, config, tensors = model
    text = config.vlm.text.model_copy(update={"encoder": "someone/some-bert"})
    config = config.model_copy(update={"vlm": config.vlm.model_copy(update={"text": text})})
    write_vlm(vlm_path(path), config, tensors, "shared", study_digest="a" * 64)
    asked.clear()
    assert run(path, tmp_path, "--text", sheet(tmp_path, SAID.items())) == 2
    assert "nothing is fetched unasked" in capsys.readouterr().err
    assert asked and all(asked)
    assert run(path, tmp_path, "--text", sheet(tmp_path, SAID.items()), "--fetch") == 2
    assert not all(asked)


def test_the_facade_takes_a_sentence(model, pictures):
    student = dusss_core.load(model[0], "cpu")
    told = student.predict(pictures["a"], text=LEFT)
    assert not np.array_equal(told.probabilities, student.predict(pictures["a"]).probabilities)
    large = student.predict(np.kron(pictures["a"], np.ones((2, 2), np.uint8)), text=LEFT)
    assert large.mask.shape == (64, 64)
    assert torch.is_tensor(next(iter(student.tensors().values())))
