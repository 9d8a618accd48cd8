"""ONNX and TorchScript: a graph from intensities in [0, 1] to probabilities, with what it takes to use it inside.

    input   picture        B x channels x H x W, float32 in [0, 1]; H and W multiples of 32
    output  probabilities  B x 1 x H x W of the foreground, or B x classes x H x W, the background first

B, H and W are free. A picture is scaled to the study's size before, or seen in windows of that size, as the embedded
description says (ONNX: metadata `feddusss.student`; TorchScript: extra file of that name).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from dusss_core.errors import UserError
from dusss_core.files import write_atomically
from dusss_core.student.file import KEY

if TYPE_CHECKING:
    from dusss_core.student import Student

TOLERANCE = 1e-4
"""Largest difference of a probability."""
INPUT, OUTPUT = "picture", "probabilities"
OPSET = 18


class WithNormalisation(nn.Module):
    """A student from intensities in [0, 1] to probabilities."""

    def __init__(self, student: Student):
        super().__init__()
        # plain memory: exporters know no other
        self.network = copy.deepcopy(student.network).cpu().to(memory_format=torch.contiguous_format).eval()
        self.mean, self.std = student.about.image.mean, student.about.image.std
        self.one = student.about.image.classes == 1
        self.eval()

    def forward(self, picture: Tensor) -> Tensor:
        """B x channels x H x W -> B x C x H x W."""
        logits = self.network((picture - self.mean) / self.std)
        return logits.sigmoid() if self.one else logits.softmax(1)


def write_onnx(student: Student, path: Path) -> str:
    """Write an ONNX file, and compare it with the student in onnxruntime at two numbers and sizes of pictures.

    Raises:
        UserError: onnx or onnxruntime is not installed, or the graph gives other probabilities.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs the package {error.name}", "pip install 'feddusss[export]'") from None
    import io

    module, size = WithNormalisation(student), student.about.image.size
    example = _example(student, 2, size)
    free = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"picture": free},
            opset_version=OPSET,
            verbose=False,
        )
    buffer = io.BytesIO()
    program.save(buffer)
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, {KEY: student.about.model_dump_json()})
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = _compared(student, module, lambda picture: session.run([OUTPUT], {INPUT: picture.numpy()})[0])
    write_atomically(path, lambda temporary: temporary.write_bytes(content) and None)
    return f"{path}: ONNX, opset {OPSET}; onnxruntime differs by at most {worst:.1e} at two sizes"


def write_torchscript(student: Student, path: Path) -> str:
    """Write a TorchScript file, and compare it with the student at two numbers and sizes of pictures.

    Raises:
        UserError: the graph gives other probabilities.
    """
    import warnings

    module = WithNormalisation(student)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing; what it would warn of is compared below
        traced = torch.jit.trace(module, _example(student, 2, student.about.image.size))
    worst = _compared(student, module, lambda picture: traced(picture).numpy())
    about = {KEY: student.about.model_dump_json()}
    write_atomically(path, lambda temporary: torch.jit.save(traced, str(temporary), _extra_files=about))
    return f"{path}: TorchScript; it differs by at most {worst:.1e} at two sizes"


def sizes(student: Student) -> tuple[tuple[int, int, int], ...]:
    """Pictures, height and width that a graph is compared at."""
    size = -(-student.about.image.size // 32) * 32
    return (1, size, size), (3, size + 32, size + 64)


def _compared(student: Student, module: nn.Module, run: Callable[[Tensor], np.ndarray]) -> float:
    worst = 0.0
    for number, height, width in sizes(student):
        picture = _example(student, number, height, width)
        with torch.no_grad():
            expected = module(picture).numpy()
        found = run(picture)
        if found.shape != expected.shape or not (gap := float(np.abs(found - expected).max())) < TOLERANCE:
            raise UserError(
                f"{student.source}: as a graph it gives other probabilities at {number} x {height} x {width}",
                "use the student's own file; this network does not keep its meaning in that format",
            )
        worst = max(worst, gap)
    return worst


def _example(student: Student, number: int, height: int, width: int | None = None) -> Tensor:
    draw = torch.Generator().manual_seed(number)
    return torch.rand(number, student.about.image.channels, height, width or height, generator=draw)
