"""The audit log says what came, what left and what was decided, and shows what was done to it afterwards."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import client.state.chain
from client.answer import answer
from client.door.audit import Unrecorded, print_log, record, verify
from client.state.chain import BEGINNING
from dusss_core.errors import UserError
from feddusss import wire
from sites.config import load_site
from tests.client.conftest import RUN_KEY, declined, limit, make_content, tensors_of


@pytest.fixture
def log(tmp_path):
    """A log of six lines."""
    for number in range(1, 7):
        record(tmp_path / "state", "made", number=number)
    return tmp_path / "state" / "audit.jsonl"


def lines_of(log):
    return log.read_bytes().splitlines(keepends=True)


def entries(log):
    return [json.loads(line) for line in lines_of(log)]


def test_every_line_holds_the_hash_of_the_line_before(log):
    previous = BEGINNING
    for number, line in enumerate(lines_of(log), start=1):
        entry = json.loads(line)
        assert (entry["seq"], entry["event"], entry["fields"]) == (number, "made", {"number": number})
        assert entry["previous"] == previous and entry["time"].endswith("+00:00")
        previous = hashlib.sha256(line.rstrip(b"\n")).hexdigest()
    verdict = verify(log)
    assert (verdict.lines, verdict.last, verdict.broken) == (6, previous, None)


@pytest.mark.parametrize("number", range(1, 7))
def test_any_changed_byte_names_its_line(log, number):
    lines = lines_of(log)
    for at in range(0, len(lines[number - 1]) - 1, 7):
        changed = bytearray(lines[number - 1])
        changed[at] = ord("5") if changed[at] != ord("5") else ord("6")
        log.write_bytes(b"".join([*lines[: number - 1], bytes(changed), *lines[number:]]))
        assert verify(log).broken == number, bytes(changed)


def test_a_line_that_was_removed_moved_or_inserted_is_named(log):
    one, two, three, four, five, six = lines_of(log)
    for tampered, broken in [
        ([one, three, four, five, six], 2),
        ([two, three, four, five, six], 1),
        ([one, three, two, four, five, six], 2),
        ([one, two, two, three, four, five, six], 3),
    ]:
        log.write_bytes(b"".join(tampered))
        assert verify(log).broken == broken
    forged = json.loads(two) | {"seq": 3, "previous": hashlib.sha256(two.rstrip(b"\n")).hexdigest()}
    log.write_bytes(b"".join([one, two, json.dumps(forged).encode() + b"\n", three, four, five, six]))
    assert verify(log).broken == 4


def test_a_line_that_was_renumbered_after_a_removal_breaks_the_chain(log):
    lines = lines_of(log)
    later = [json.dumps(json.loads(line) | {"seq": n}).encode() + b"\n" for n, line in enumerate(lines[2:], start=2)]
    log.write_bytes(b"".join([lines[0], *later]))
    assert verify(log).broken == 2


@pytest.mark.parametrize("left", [0, 3, 5])
def test_an_end_that_was_cut_off_shows_and_goes_on_showing(log, left):
    log.write_bytes(b"".join(lines_of(log)[:left]))
    assert verify(log).broken == left + 1
    record(log.parent, "made", number=7)
    assert verify(log).broken == left + 1
    assert "did not end with line 6" in entries(log)[left]["fields"]["problem"]


def test_a_changed_last_line_is_not_healed_by_the_next(log):
    lines = lines_of(log)
    log.write_bytes(b"".join([*lines[:5], lines[5].replace(b'"number":6', b'"number":9')]))
    record(log.parent, "made", number=7)
    assert verify(log).broken == 6


def test_a_log_that_was_taken_away_is_missed(log):
    log.unlink()
    record(log.parent, "made", number=7)
    verdict = verify(log)
    assert verdict.broken == 1


def test_without_its_head_a_log_counts_as_damaged(log):
    (log.parent / "audit.head").unlink()
    assert verify(log).broken == 7
    record(log.parent, "made", number=7)
    assert verify(log).broken == 7


def test_a_crash_between_the_line_and_its_head_is_no_damage(log):
    head = (log.parent / "audit.head").read_bytes()
    record(log.parent, "made", number=7)
    (log.parent / "audit.head").write_bytes(head)
    assert verify(log).broken is None
    record(log.parent, "made", number=8)
    assert verify(log).broken is None and len(entries(log)) == 8


def test_a_crash_after_the_very_first_line_is_no_damage(tmp_path):
    record(tmp_path, "made")
    (tmp_path / "audit.head").write_text(json.dumps({"lines": "0" * 12, "last": "0" * 64}))
    assert verify(tmp_path / "audit.jsonl").broken is None
    record(tmp_path, "made")
    assert verify(tmp_path / "audit.jsonl").broken is None


def test_a_torn_last_line_is_set_aside_and_noted(log):
    with log.open("ab") as file:
        file.write(b'{"seq":7,"ti' + b"x" * 10_000)
    assert verify(log).broken is None
    record(log.parent, "made", number=7)
    noted, last = entries(log)[-2:]
    assert noted["event"] == client.state.chain.TORN and last["fields"] == {"number": 7}
    aside = log.parent / noted["fields"]["file"]
    assert aside.read_bytes().startswith(b'{"seq":7,"tix')
    assert hashlib.sha256(aside.read_bytes()).hexdigest() == noted["fields"]["sha256"]
    assert verify(log).broken is None


def test_the_log_is_readable_by_its_owner_alone(log):
    for path in log.parent.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


WRITER = "import sys; from pathlib import Path; from client.door.audit import record\n"


def test_processes_that_write_at_once_make_one_chain(tmp_path):
    code = WRITER + "for i in range(40): record(Path(sys.argv[1]), 'made', by=sys.argv[2], i=i)"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)]) for n in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert verify(tmp_path / "audit.jsonl").broken is None
    made = [(entry["fields"]["by"], entry["fields"]["i"]) for entry in entries(tmp_path / "audit.jsonl")]
    assert sorted(made) == sorted((str(n), i) for n in range(4) for i in range(40))


def test_a_writer_killed_at_any_time_leaves_a_whole_chain(tmp_path):
    code = WRITER + "i = 0\nwhile True: i += 1; record(Path(sys.argv[1]), 'made', i=i, text='x' * 400)"
    for wait in (0.0, 0.003, 0.011, 0.02):
        # the last line may be half a line, as the kill left it
        before = len(lines_of(tmp_path / "audit.jsonl")) if (tmp_path / "audit.jsonl").exists() else 0
        writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
        give_up = time.monotonic() + 30
        while time.monotonic() < give_up:
            if (tmp_path / "audit.jsonl").exists() and len(lines_of(tmp_path / "audit.jsonl")) > before + 3:
                break
            time.sleep(0.01)
        time.sleep(wait)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    record(tmp_path, "after")
    assert verify(tmp_path / "audit.jsonl").broken is None


@pytest.fixture
def full_disk(monkeypatch):
    """Turns a full disk on: the audit log takes half a line and no more."""
    write = os.write

    def half(descriptor, content):
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "audit.jsonl":
            if len(content) > 60:
                return write(descriptor, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content)

    return lambda: monkeypatch.setattr(client.state.chain.os, "write", half)


def test_a_full_disk_leaves_the_lines_before_whole(log, full_disk):
    before = log.read_bytes()
    full_disk()
    with pytest.raises(Unrecorded, match="No space left"):
        record(log.parent, "made", number=7)
    assert log.read_bytes() == before and verify(log).broken is None


def test_nothing_leaves_a_site_that_cannot_record_it(fake, site_file, full_disk):
    assert declined(answer("train", make_content(round=1), site_file)) is None
    full_disk()
    reply = answer("train", make_content(round=2), site_file)
    assert not reply.array_records and not reply.metric_records
    assert "cannot write its audit log" in declined(reply)


def test_an_answer_that_cannot_be_recorded_stays_here(fake, site_file, monkeypatch):
    def only_messages(state_dir, event, fields, append=client.state.chain.append):
        if event != "message":
            raise OSError(errno.ENOSPC, "No space left on device")
        append(state_dir, event, fields)

    monkeypatch.setattr(client.state.chain, "append", only_messages)
    reply = answer("train", make_content(), site_file)
    assert list(reply) == ["config"] and "cannot write its audit log" in declined(reply)


def test_a_round_is_recorded_with_what_came_and_what_left(fake, site_file):
    content = make_content(round=3)
    reply = answer("train", content, site_file)
    came, left = entries(site_file.parent / "state" / "audit.jsonl")
    training = content.config_records["config"]["training"]
    assert came["event"] == "message"
    assert came["fields"] == {
        "kind": "train",
        "phase": "segment",
        "round": 3,
        "run_key": RUN_KEY,
        "settings": hashlib.sha256(training.encode()).hexdigest(),
        "records": ["arrays"],
        "bytes": wire.size(content.array_records["arrays"]),
    }
    assert left["event"] == "answer" and left["fields"]["round"] == 3
    sent = tensors_of(reply)
    assert {name: tensor["sha256"] for name, tensor in left["fields"]["tensors"].items()} == {
        f"arrays.{name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in sent.items()
    }
    assert left["fields"]["bytes"] == wire.size(reply.array_records["arrays"])
    assert left["fields"]["metrics"].keys() == reply.metric_records["metrics"].keys()
    assert len(sent) == 7


def test_what_is_declined_is_recorded_with_its_reason(fake, site_file):
    limit(site_file, phases=[])
    answer("train", make_content(), site_file)
    answer("train", make_content(run_key="../../escape" * 1000), site_file)
    (_, first, hostile, second) = entries(site_file.parent / "state" / "audit.jsonl")
    assert first["event"] == second["event"] == "declined"
    assert "limits.phases" in first["fields"]["reason"] and "'run_key'" in second["fields"]["reason"]
    assert len(hostile["fields"]["run_key"]) < 550


def test_no_line_of_the_log_is_ever_sent(fake, site_file):
    from flwr.common.serde import recorddict_to_proto

    sent = b""
    for round in (1, 2):
        sent += recorddict_to_proto(answer("train", make_content(round=round), site_file)).SerializeToString()
    text = (site_file.parent / "state" / "audit.jsonl").read_text()
    for entry in map(json.loads, text.splitlines()):
        assert entry["time"].encode() not in sent


def test_the_table_tells_whether_the_chain_is_whole(log, site_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    site = load_site(site_file, [f"state_dir={log.parent}"])
    assert print_log(site, last=2) == 0
    shown = capsys.readouterr().out
    assert "number 6" in shown and "number 4" not in shown and "6 lines, the chain is whole" in shown
    log.write_bytes(b"".join([*lines_of(log)[:2], *lines_of(log)[3:]]))
    assert print_log(site) == 1
    assert "line 3 is numbered 4" in capsys.readouterr().out
    assert print_log(site, as_json=True) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["chain"]["broken"] == 3 and len(told["entries"]) == 5


def test_the_command_line_makes_a_key_and_shows_that_it_did(site_file, capsys):
    from client.__main__ import main

    site_file.write_text(site_file.read_text() + "superlink: {address: 'localhost:1', private_key: site.key}\n")
    assert main(["init", "--site", str(site_file)]) == 0
    public = capsys.readouterr().out.strip()
    assert main(["audit", "--site", str(site_file), "--json", "--last", "1"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["entries"]
    assert entry["event"] == "key made" and public.startswith(entry["fields"]["public"])
    log = site_file.parent / "state" / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b"key made", b"key lost"))
    assert main(["audit", "--site", str(site_file)]) == 1
    assert "line 1 was changed" in capsys.readouterr().out


def test_a_hostile_text_cannot_write_to_the_terminal(tmp_path, site_file, capsys):
    record(tmp_path / "s", "message", phase="\x1b[2J[red]x[/red]\nnew")
    assert print_log(load_site(site_file, [f"state_dir={tmp_path / 's'}"])) == 0
    shown = capsys.readouterr().out
    assert "\x1b[2J" not in shown and r"\x1b[2J[red]x[/red]\nnew" in "".join(shown.split())


def test_a_log_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        verify(tmp_path / "audit.jsonl")


def test_a_line_costs_little(tmp_path):
    for _ in range(50):
        record(tmp_path, "made")
    big = tmp_path / "audit.jsonl"
    started = time.perf_counter()
    for _ in range(20):
        record(tmp_path, "made")
    assert (time.perf_counter() - started) / 20 < 0.1
    assert verify(big).lines == 70
