"""The networks: the student and its EMA teacher, and the vision-language model, composed from its parts."""

from dusss_core.models.build import Student, build, build_student, build_vlm
from dusss_core.models.ema import Teacher
from dusss_core.models.unet import UNet
from dusss_core.models.vlm import VisionLanguageModel

__all__ = ["Student", "Teacher", "UNet", "VisionLanguageModel", "build", "build_student", "build_vlm"]
