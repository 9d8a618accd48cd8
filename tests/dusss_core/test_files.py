"""What cannot be written is told as that, whatever else the disk refuses."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dusss_core.errors import UserError
from dusss_core.files import write_text


def test_a_disk_that_is_read_only_is_an_error_of_the_user_though_nothing_can_be_removed_there(tmp_path, monkeypatch):
    path = tmp_path / "state"
    write_text(path, "before")

    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", refused)
        patch.setattr(Path, "unlink", refused)
        with pytest.raises(UserError, match="could not be written: Read-only file system"):
            write_text(path, "after")
    assert path.read_text() == "before"
