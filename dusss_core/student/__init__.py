"""A finished student: its file, which a stranger can load by itself, and what is done with it in two lines.

May enter: a student's file, which is checked before a number of it is used, and pictures. Nothing is trained here; the
statistics of normalisation layers can be fitted to pictures of a hospital that took no part.
"""

from dusss_core.student.about import About
from dusss_core.student.file import (
    layers_without_a_site,
    personal_path,
    read_student,
    students_in,
    whole_student,
    write_student,
)
from dusss_core.student.student import Prediction, Student, write_fitted
from dusss_core.student.vlm import AboutVLM, load_vlm, read_vlm, vlm_path, write_vlm

__all__ = [
    "About",
    "AboutVLM",
    "Prediction",
    "Student",
    "layers_without_a_site",
    "load_vlm",
    "personal_path",
    "read_student",
    "read_vlm",
    "students_in",
    "vlm_path",
    "whole_student",
    "write_fitted",
    "write_student",
    "write_vlm",
]
