"""The networks: the student and its EMA teacher, and the vision-language model, composed from its parts.

May enter: numbers that say how large they are, and batches; how a study names them is `dusss_core.build`'s.
"""

from dusss_core.models.ema import Teacher
from dusss_core.models.encoder_student import EncoderStudent
from dusss_core.models.small_unet import SmallUNet
from dusss_core.models.unet import UNet
from dusss_core.models.vlm import VisionLanguageModel

__all__ = ["EncoderStudent", "SmallUNet", "Teacher", "UNet", "VisionLanguageModel"]
