"""Students that nobody trained, with statistics that are not those of the start."""

from __future__ import annotations

import pytest
import torch

from dusss_core.build import build_student
from dusss_core.config import TrainingConfig
from dusss_core.student import About, write_student


def make_config(**changes) -> TrainingConfig:
    values = {"study": "tiny", "image": {"size": 32}, "student": {"width": 4}}
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return TrainingConfig.model_validate(values)


def make_tensors(config: TrainingConfig) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    tensors = dict(build_student(config).state_dict())
    for name, value in tensors.items():
        if name.endswith("running_mean"):
            tensors[name] = 0.1 * torch.randn(value.shape, generator=draw)
        elif name.endswith("running_var"):
            tensors[name] = 0.5 + torch.rand(value.shape, generator=draw)
    # logits that are spread around 0, so that masks have both
    model = build_student(config).eval()
    model.load_state_dict(tensors)
    with torch.no_grad():
        seen = model(torch.rand(1, config.image.channels, 64, 64, generator=draw) * 4 - 2)
    spread = seen.std(dim=(0, 2, 3)) / 2
    tensors["head.weight"] = tensors["head.weight"] / spread[:, None, None, None]
    tensors["head.bias"] = (tensors["head.bias"] - seen.mean(dim=(0, 2, 3))) / spread
    return tensors


@pytest.fixture
def student_file(tmp_path):
    """Write a student's file; changes are those of the study's settings."""

    def write(name="student.safetensors", layers="shared", **changes):
        config = make_config(**changes)
        path = tmp_path / name
        write_student(path, About.of(config, layers=layers, study_digest="a" * 64, round=3), make_tensors(config))
        return path

    return write
