"""The students of tests/dusss_core/student."""

from __future__ import annotations

import pytest

from tests.dusss_core.student.conftest import student_file  # noqa: F401


@pytest.fixture
def model(student_file):  # noqa: F811
    return student_file()
