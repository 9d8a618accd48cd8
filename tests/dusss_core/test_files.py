"""What cannot be written is told as that, whatever else the disk refuses."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dusss_core.errors import UserError
from dusss_core.files import (
    DIGEST,
    clear_unfinished,
    close_to_others,
    make_private,
    read_metadata,
    read_tensors,
    write_atomically,
    write_tensors,
    write_text,
)


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


def test_an_error_of_the_disk_names_no_option_that_only_some_commands_have(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="then start again; the file that was there before is untouched"):
        write_text(tmp_path / "file" / "below", "x")


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path, monkeypatch):
    path = tmp_path / "student.safetensors"
    write_tensors(path, {})

    def refused(self, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with pytest.raises(UserError, match="none: no such file"):
        read_metadata(tmp_path / "none")
    with pytest.raises(UserError, match="could not be read: Is a directory"):
        read_metadata(tmp_path)
    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError, match="could not be read: Permission denied\n  -> mend its permissions"):
        read_metadata(path)


def test_a_picture_in_the_place_of_a_student_is_not_to_be_deleted(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and more of it")
    with pytest.raises(UserError, match="not a whole safetensors file") as told:
        read_tensors(path)
    assert "delete" not in told.value.remedy
    assert "copy it again" in told.value.remedy and "the student's file comes first" in told.value.remedy


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


KILLED = """
import os, sys
from pathlib import Path
from dusss_core.files import write_atomically

def write(temporary):
    temporary.write_bytes(b"half")
    print(temporary, flush=True)
    os.kill(os.getpid(), 9)

write_atomically(Path(sys.argv[1]), write)
"""


def test_what_a_killed_writer_left_half_written_does_not_stay(tmp_path):
    """Each is as large as a model: a machine that runs out of memory now and then would fill its disk with them."""
    path = tmp_path / "run" / "segment-000001.safetensors"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    left = Path(killed.stdout.strip())
    assert killed.returncode == -9 and left.read_bytes() == b"half"
    others = [
        left.with_name(name) for name in (f".other.{os.getppid()}.tmp", ".mine.tmp", "segment-000002.safetensors")
    ]
    for other in others:
        other.write_bytes(b"")
    clear_unfinished(tmp_path)
    assert not left.exists() and all(other.exists() for other in others)


def test_a_private_folder_is_its_owners_alone_with_all_that_is_made_above_it(tmp_path):
    before = os.umask(0o022)
    try:
        make_private(tmp_path / "srv" / "state" / "cache")
    finally:
        os.umask(before)
    made = [tmp_path / "srv", tmp_path / "srv" / "state", tmp_path / "srv" / "state" / "cache"]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in made] == [0o700] * 3
    made[1].chmod(0o755)
    assert close_to_others(made[1]) and stat.S_IMODE(made[1].stat().st_mode) == 0o700
    assert not close_to_others(made[1])


def test_of_a_checked_file_every_changed_byte_is_noticed_and_others_are_read_as_before(tmp_path):
    path, tensors, told = (
        tmp_path / "state",
        {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.uint8)},
        {"of": "x"},
    )
    write_tensors(path, tensors, told, checked=True)
    whole = path.read_bytes()
    found, about = read_tensors(path)
    assert about["of"] == "x" and all(torch.equal(found[name], tensors[name]) for name in tensors)
    named = range(whole.index(DIGEST.encode()), whole.index(DIGEST.encode()) + len(DIGEST))
    for place in set(range(len(whole))) - set(named):  # without its name it is a file of an older release
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError):
            read_tensors(path)
    write_tensors(path, tensors, told)
    assert read_tensors(path)[1] == told
    spare = tmp_path / "spare"
    spare.write_bytes(b"x" * 10**5)
    write_tensors(path, tensors, told, over=spare, checked=True)
    assert path.read_bytes() == whole
