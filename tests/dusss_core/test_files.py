"""What cannot be written is told as that, whatever else the disk refuses."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dusss_core.errors import UserError
from dusss_core.files import write_atomically, write_text


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


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_what_is_broken_off_while_it_is_written_leaves_the_file_before_and_nothing_else(tmp_path, error):
    path = tmp_path / "state"
    write_text(path, "before")

    def half(temporary):
        temporary.write_text("aft")
        raise error

    with pytest.raises((error, UserError)):
        write_atomically(path, half)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_process_that_is_killed_while_it_writes_leaves_the_file_before(tmp_path):
    path = tmp_path / "state"
    write_text(path, "before")
    code = (
        "import os, signal, sys; from pathlib import Path; from dusss_core.files import write_atomically\n"
        "def half(temporary): temporary.write_text('aft'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), half)"
    )
    assert subprocess.run([sys.executable, "-c", code, path]).returncode == -signal.SIGKILL
    assert path.read_text() == "before"
