"""The students of tests/dusss_core/student."""

from tests.dusss_core.student.conftest import student_file  # noqa: F401
