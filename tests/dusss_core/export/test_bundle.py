"""A MONAI bundle holds the student in parts that are not ours, and MONAI's own command runs it to the same masks."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import dusss_core
from dusss_core.errors import UserError
from dusss_core.export import export
from dusss_core.export.bundle import expressed
from dusss_core.readers import read_image
from tests.dusss_core.student.conftest import make_config, student_file  # noqa: F401
from tests.sites.builders import picture, save


def built(folder) -> torch.nn.Module:
    """The bundle's network with its weights, as MONAI builds it."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(folder / "configs/inference.json")
    parser.config["bundle_root"] = str(folder)
    parser.config["device"] = "cpu"
    parser.get_parsed_content("weights")
    return parser.get_parsed_content("network")


@pytest.mark.parametrize(
    "changes",
    [{}, {"student": {"norm": "group"}}, {"image": {"classes": 2, "channels": 3}}],
    ids=["unet", "group norm", "three classes"],
)
def test_the_network_of_torchs_and_monais_parts_gives_the_same_numbers(student_file, tmp_path, changes):  # noqa: F811
    student = dusss_core.load(student_file(**changes), "cpu")
    export(student, "monai-bundle", tmp_path / "bundle")
    network = built(tmp_path / "bundle")
    assert not any(type(module).__module__.startswith("dusss_core") for module in network.modules())
    x = torch.randn(2, student.about.image.channels, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(network(x), student.network(x), atol=1e-5)


def test_the_small_unet_too(tmp_path):
    from dusss_core.build import build_student
    from dusss_core.student import About, Student

    config = make_config(student={"network": "small_unet"})
    tensors = dict(build_student(config).state_dict())
    student = Student(About.of(config, layers="shared"), tensors, "cpu")
    export(student, "monai-bundle", tmp_path / "bundle")
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(built(tmp_path / "bundle")(x), student.network(x), atol=1e-5)


def test_an_encoder_of_timm_is_refused_by_name():
    from dusss_core.build import build_student
    from dusss_core.student import About, Student

    config = make_config(student={"encoder": "test_resnet"}, image={"size": 64})
    student = Student(About.of(config, layers="shared"), dict(build_student(config).state_dict()), "cpu")
    with pytest.raises(UserError, match="test_resnet is an encoder of timm"):
        expressed(student)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_the_bundle_sees_a_picture_turned_as_it_says(student_file, tmp_path, suffix):  # noqa: F811
    from monai.bundle import ConfigParser

    export(dusss_core.load(student_file(), "cpu"), "monai-bundle", tmp_path / "bundle")
    exif = Image.Exif()
    exif[274] = 6
    path = save(tmp_path / f"pictures/a.{suffix}", picture(1, 32, 32), exif=exif)
    parser = ConfigParser()
    parser.read_config(tmp_path / "bundle/configs/inference.json")
    parser.config["preprocessing"]["transforms"] = parser.config["preprocessing"]["transforms"][:3]
    seen = parser.get_parsed_content("preprocessing")({"image": str(path)})["image"]
    assert np.allclose(seen.numpy(), read_image(path, 1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 2])
def test_monais_own_command_gives_the_students_masks(student_file, tmp_path, classes):  # noqa: F811
    student = dusss_core.load(student_file(image={"classes": classes}), "cpu")
    export(student, "monai-bundle", tmp_path / "bundle")
    for i in range(2):
        save(tmp_path / f"pictures/{i}.png", picture(i, 32, 32))
    # MONAI scales by other weights: of noise the two would see different pictures
    slope = np.add.outer(np.linspace(0, 127, 40), np.linspace(0, 127, 64)).astype(np.uint8)
    save(tmp_path / "pictures/wide.png", slope)
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += [
        "--bundle_root",
        ".",
        "--dataset_dir",
        str(tmp_path / "pictures"),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    # the project is not on its way to be imported
    subprocess.run(command, cwd=tmp_path / "bundle", check=True, env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"})
    for name in ("0", "1", "wide"):
        found = np.asarray(Image.open(tmp_path / f"out/{name}_mask.png"))
        expected = student.predict(tmp_path / f"pictures/{name}.png").mask
        assert found.shape == expected.shape
        agree = ((found > 0) == (expected > 0)) if classes == 1 else found == expected
        assert agree.mean() > (0.95 if name == "wide" else 0.999)
    metadata = json.loads((tmp_path / "bundle/configs/metadata.json").read_text())
    assert metadata["student"]["study"] == "tiny"
