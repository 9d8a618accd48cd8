"""What a person is told when the log cannot be written: one line, another when it can, and never a traceback."""

from __future__ import annotations

import errno
import logging

import pytest

from client import __main__ as command
from client.node import console, ending
from client.node.console import open_console
from dusss_core.errors import UserError
from tests.client.conftest import limit


def log_of(folder):
    return (folder / "client.log").read_text()


def refused(path, flags):
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_disk_that_turns_read_only_is_told_in_one_line_and_the_log_goes_on_once_it_can(tmp_path, monkeypatch, capfd):
    with open_console(tmp_path) as shown:
        shown.say("before")
        handler = logging.getLogger("feddusss.client").handlers[0]
        handler.stream.close()
        handler.stream = open("/dev/full", "w")  # noqa: PTH123, SIM115
        with monkeypatch.context() as patch:
            patch.setattr(console, "_private", refused)
            for number in range(300):
                shown.keep(f"supernode: line {number}")
            shown.say("meanwhile")
        shown.keep("after")
        shown.say("at last")
    seen = capfd.readouterr()
    assert "Traceback" not in seen.err + seen.out and seen.err == ""
    told = [line.partition(" ")[2] for line in seen.out.splitlines()]
    assert [line for line in told if not line.startswith(str(tmp_path))] == ["before", "meanwhile", "at last"]
    broken, mended = [line for line in told if line.startswith(str(tmp_path))]
    assert "cannot be written: No space left on device. Nothing leaves this site" in broken
    assert mended.endswith("can be written again")
    assert [line.split(" ", 2)[2] for line in log_of(tmp_path).splitlines()] == ["before", "after", "at last"]


def test_the_log_is_for_its_owner_alone_and_no_way_to_another_file(tmp_path):
    with open_console(tmp_path / "logs") as shown:
        shown.say("a line")
    assert (tmp_path / "logs" / "client.log").stat().st_mode & 0o777 == 0o600
    (tmp_path / "other").write_text("")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "client.log").symlink_to(tmp_path / "other")
    with pytest.raises(OSError), open_console(tmp_path / "linked"):
        pass
    assert (tmp_path / "other").read_text() == ""


@pytest.mark.parametrize("place", ["dusss_core.files.exclusive", "client.node.console.open_console"])
def test_a_client_that_cannot_write_its_state_does_not_start_and_says_what_to_do(site_file, monkeypatch, place, capsys):
    def unwritable(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    limit(site_file)
    monkeypatch.setattr(command, "_check_superlink", lambda *_: None)
    monkeypatch.setattr(command, "_check_data", lambda *_: None)
    monkeypatch.setattr(place, unwritable)
    assert command.main(["--site", str(site_file)]) == 2
    told = capsys.readouterr().err
    assert "cannot be written to: Read-only file system" in told and "mount it for writing" in told


def test_a_client_that_starts_closes_its_state_to_other_accounts_and_says_so(site_file, monkeypatch):
    state = site_file.parent / "state"
    state.mkdir(mode=0o755, exist_ok=True)
    state.chmod(0o755)
    site_file.write_text(site_file.read_text() + "superlink: {address: '127.0.0.1:1', insecure: true}\n")
    monkeypatch.setattr(command, "_check_data", lambda *_: None)
    monkeypatch.setattr("client.node.supervisor.Supervisor.run", lambda self: None)
    for _ in range(2):
        assert command.main(["--site", str(site_file)]) == 0
        assert state.stat().st_mode & 0o777 == 0o700
    assert log_of(state / "logs").count("other accounts of this machine could look into it; closed to them") == 1


def test_a_supernode_that_cannot_write_says_so_and_is_told_as_that(site_file, monkeypatch):
    from client.node import supernode

    def unwritable(*_):
        raise UserError("state/flwr/secret: Read-only file system", "free disk space")

    monkeypatch.setattr(supernode, "flower_arguments", unwritable)
    for name in ("guard_supernode", "end_with_supervisor", "_say_missed_goodbye", "Turns"):
        monkeypatch.setattr(supernode, name, lambda *_: type("Nothing", (), {"take": None, "answer": None}))
    monkeypatch.setattr(supernode.flower, "stand_in", lambda *_: None)
    monkeypatch.setattr(supernode.uploads, "read_on", lambda: None)
    text = site_file.read_text()
    site_file.write_text(text + "superlink: {address: '127.0.0.1:1', insecure: true}\n")
    with pytest.raises(SystemExit) as left:
        supernode.main([str(site_file)])
    situation = ending.Situation(str(left.value).splitlines(), False, False, "key.pub")
    assert ending.why(situation).name == "disk" and "Read-only file system" in ending.why(situation).text
