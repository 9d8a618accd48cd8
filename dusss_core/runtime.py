"""How a device is used: what `runtime: auto` comes to on it, and the switches of torch that hold for a whole process.

Two sites of one study may choose differently: weights and moments are float32 everywhere, and a private state goes on
on another device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from dusss_core.config import TrainingConfig
from dusss_core.phases import Phase

FAST_WIDTH = 16
"""Channels of a U-Net at full resolution from which on a step in bfloat16 is the faster on a CPU that has instructions
for it: 1.8 times at 16, 2.0 at 32, 1.9 at 64; at 8 it is 1.1 to 1.2, about what a machine varies. small_unet: 1.5
times. Depthwise convolutions lose: an EfficientNet as student 0.9 times."""
FAST_ENCODERS = ("resnet",)
"""Beginnings of the names of image encoders with which a step of pretraining in bfloat16 is the faster there: 1.3 times
with resnet18; 1.05 with tf_efficientnet_lite0, 0.8 with mobilenetv3_small_050."""
CPU_EVAL_PIXELS = 2**17
"""Pixels that a CPU evaluates at a time: the maps of more do not fit its caches."""
MOST_EVAL_PICTURES = 64


class Runtime(NamedTuple):
    """`RuntimeConfig` without anything left open."""

    amp: bool
    channels_last: bool
    eval_batch: int

    def __str__(self) -> str:
        return f"{'bfloat16' if self.amp else 'float32'}, {'channels_last' if self.channels_last else 'contiguous'}"

    @property
    def memory_format(self) -> torch.memory_format:
        """Of models and pictures."""
        return torch.channels_last if self.channels_last else torch.contiguous_format


def runtime_of(config: TrainingConfig, phase: Phase, device: torch.device | str) -> Runtime:
    """What the study's settings come to for the network of `phase` on `device`."""
    device, settings = torch.device(device), config.runtime
    measured = device.type in ("cpu", "cuda")
    fitting = CPU_EVAL_PIXELS // config.image.size**2 if device.type == "cpu" else MOST_EVAL_PICTURES
    own = min(max(1, fitting), MOST_EVAL_PICTURES)
    return Runtime(
        amp=bfloat16_pays(config, phase, device) if settings.amp == "auto" else settings.amp,
        channels_last=measured if settings.channels_last == "auto" else settings.channels_last,
        eval_batch=own if settings.eval_batch == "auto" else settings.eval_batch,
    )


def bfloat16_pays(config: TrainingConfig, phase: Phase, device: torch.device) -> bool:
    """Whether a step of `phase` was measured to be faster in bfloat16 on such a device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not has_bfloat16_instructions():
        return False
    if phase == Phase.PRETRAIN:
        return config.vlm.image_encoder.startswith(FAST_ENCODERS)
    student = config.student
    return student.kind == "small_unet" or (student.kind == "unet" and student.width >= FAST_WIDTH)


def has_bfloat16_instructions() -> bool:
    """Whether this machine's processor multiplies in bfloat16 (AVX512_BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def tune(config: TrainingConfig, device: torch.device) -> None:
    """Set what torch has for a whole process; nothing on other devices than CUDA.

    Convolutions in float32 may use TF32 (10 bits of mantissa), as is torch's default. Matrix products may not: the
    cosines and Wasserstein distances of the losses cancel what TF32 keeps, and nothing else multiplies much. Where the
    runtime is chosen by the device, cuDNN tries which of its kernels is the fastest for each shape; it may choose
    another one in another process.
    """
    if device.type != "cuda":
        return
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = "auto" in (config.runtime.amp, config.runtime.channels_last)
