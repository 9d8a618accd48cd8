"""What is sent to hospitals holds settings and no code."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile

import pytest

from feddusss.bundle import release_bundle, write_app


def test_the_bundle_holds_one_file_and_no_code():
    content, _ = release_bundle()
    with zipfile.ZipFile(io.BytesIO(content)) as bundle:
        # .info/CONTENT is Flower's own list of the files in it
        assert sorted(bundle.namelist()) == [".info/CONTENT", "pyproject.toml"]
    assert len(content) < 1500


def test_another_process_builds_the_same_bundle():
    code = "from feddusss.bundle import release_bundle; print(release_bundle()[1])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == release_bundle()[1]


def test_a_folder_with_something_else_in_it_is_no_app(tmp_path):
    (tmp_path / "extra.py").write_text("")
    with pytest.raises(ValueError, match=r"extra\.py"):
        write_app(tmp_path)
