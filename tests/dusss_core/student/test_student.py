"""Two lines give a mask of any picture, at its own size, and the same one as in the study."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import dusss_core
from dusss_core.errors import UserError
from dusss_core.inference import predict_logits
from dusss_core.metrics import to_classes
from tests.sites.builders import picture, save


def test_path_array_and_pil_picture_give_the_same(student_file, tmp_path):
    student = dusss_core.load(student_file(), "cpu")
    pixels = picture(1, 50, 40)
    path = save(tmp_path / "a.png", pixels)
    for one in (path, str(path), pixels, Image.fromarray(pixels)):
        mask, probabilities = student.predict(one)
        assert mask.shape == probabilities.shape == (50, 40)
        assert np.array_equal(probabilities, student.predict(path).probabilities)
        assert np.array_equal(mask, (probabilities > 0.5).astype(np.uint8))


def test_a_picture_of_the_studys_size_gets_what_the_study_evaluates(student_file):
    student = dusss_core.load(student_file(), "cpu")
    pixels = picture(2, 32, 32)
    logits = predict_logits(student.network, pixels[None, None], student.about.image, "cpu", 1)
    prediction = student.predict(pixels)
    assert np.array_equal(prediction.mask, to_classes(logits)[0])
    assert np.allclose(prediction.probabilities, torch.tensor(logits[0, 0]).float().sigmoid(), atol=2e-3)
    assert 0 < prediction.mask.mean() < 1


def test_a_batch_of_pictures_of_many_sizes_gives_each_what_it_gets_alone(student_file):
    student = dusss_core.load(student_file(), "cpu")
    pictures = [picture(i, 30 + 7 * i, 64 - 5 * i) for i in range(5)]
    for pixels, together in zip(pictures, student.predict_each(pictures), strict=True):
        alone = student.predict(pixels)
        assert together.mask.shape == pixels.shape
        assert np.allclose(together.probabilities, alone.probabilities, atol=1e-5)


def test_the_threshold_of_the_file_decides(student_file):
    student = dusss_core.load(student_file(), "cpu")
    areas = []
    for threshold in (0.3, 0.5, 0.7):
        student.about = student.about.model_copy(update={"threshold": threshold})
        mask, probabilities = student.predict(picture(3))
        assert np.array_equal(mask, probabilities > threshold)
        areas.append(int(mask.sum()))
    assert areas[0] > areas[2]


def test_several_classes_are_the_most_probable_ones(student_file):
    student = dusss_core.load(student_file(image={"classes": 2, "channels": 3}), "cpu")
    mask, probabilities = student.predict(picture(4, channels=3))
    assert probabilities.shape == (3, 48, 40)
    assert np.allclose(probabilities.sum(0), 1, atol=1e-5)
    assert np.array_equal(mask, probabilities.argmax(0))


def test_a_large_picture_of_a_study_on_tiles_is_seen_through_a_window(student_file):
    student = dusss_core.load(student_file(image={"mode": "tile"}), "cpu")
    pixels = picture(5, 100, 70)
    logits = predict_logits(student.network, [pixels[None]], student.about.image, "cpu", 4)[0]
    prediction = student.predict(pixels)
    assert prediction.mask.shape == (100, 70)
    assert np.allclose(prediction.probabilities, torch.tensor(logits[0]).float().sigmoid(), atol=2e-3)
    # a scaled picture would give something else
    resized = dusss_core.load(student_file("resize.safetensors"), "cpu").predict(pixels)
    assert not np.array_equal(prediction.mask, resized.mask)


@pytest.mark.parametrize(
    ("pixels", "same_as"),
    [
        (picture(6).astype(np.uint16) * 257, picture(6)),
        ((picture(6) > 99), (picture(6) > 99).astype(np.uint8) * 255),
        (picture(6).astype(np.float32) / 255, picture(6)),
    ],
    ids=["16 bits", "bool", "float in [0, 1]"],
)
def test_the_scale_of_an_array_follows_from_its_type(student_file, pixels, same_as):
    student = dusss_core.load(student_file(), "cpu")
    assert np.allclose(student.predict(pixels).probabilities, student.predict(same_as).probabilities, atol=1e-4)


@pytest.mark.parametrize("wrong", [np.zeros((2, 3, 4, 5)), np.zeros((4, 4), "U1"), np.zeros((0, 3)), 7])
def test_what_is_no_picture_is_refused(student_file, wrong):
    with pytest.raises(UserError, match="not a picture"):
        dusss_core.load(student_file(), "cpu").predict(wrong)


def test_a_device_that_is_not_there_is_refused(student_file):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="cuda is not available"):
        dusss_core.load(student_file(), "cuda")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cuda:-1", "cpu:0"])
def test_what_no_device_is_called_is_refused(student_file, name):
    with pytest.raises(UserError, match="no device is called so"):
        dusss_core.load(student_file(), name)


def test_help_is_instant_since_nothing_heavy_is_imported():
    code = (
        "import sys; from dusss_core.__main__ import build_parser; build_parser().format_help();"
        "print(sorted({'torch', 'monai', 'pydantic', 'numpy', 'onnx'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
