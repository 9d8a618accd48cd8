"""A site's own log is bounded, private, loses no line to another process, and is no way to another file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from client.door import audit
from client.state import store
from client.state.chain import LOG, verify
from client.state.store import LOG_FILES, write_log


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(store, "LOG_BYTES", 1000)


def lines(folder):
    """Of all files, the oldest line first."""
    files = [folder / f"log.txt.{number}" for number in range(LOG_FILES, 0, -1)] + [folder / "log.txt"]
    return [line for file in files if file.exists() for line in file.read_text().splitlines()]


def test_it_is_kept_in_some_files_of_a_size_and_the_oldest_lines_go(tmp_path, small):
    for number in range(500):
        write_log(tmp_path, f"line {number}")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["log.txt", *(f"log.txt.{number}" for number in range(1, LOG_FILES))]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    told = [int(line.rpartition(" ")[2]) for line in lines(tmp_path)]
    assert told == list(range(told[0], 500)) and len(told) > 100


def test_every_file_of_it_is_for_its_owner_alone(tmp_path, small):
    for _ in range(200):
        write_log(tmp_path, "x" * 40)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_several_writers_lose_no_line_and_turn_it_over_once(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LOG_BYTES", 10_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_log(tmp_path, f"line {number}"), range(1000)))
    told = sorted(int(line.rpartition(" ")[2]) for line in lines(tmp_path))
    assert told == list(range(1000))


@pytest.mark.parametrize("name", ["log.txt", "log.txt.1"])
def test_a_link_in_its_place_leads_nowhere(tmp_path, small, name):
    other = tmp_path / "other"
    other.write_text("another file\n")
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / name).symlink_to(other)
    for _ in range(100):
        write_log(folder, "x" * 40)
    assert other.read_text() == "another file\n"


def test_a_line_beyond_the_size_of_a_file_is_kept_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "LOG_BYTES", 10)
    write_log(tmp_path, "one")
    write_log(tmp_path, "two")
    assert "one" in (tmp_path / "log.txt.1").read_text() and "two" in (tmp_path / "log.txt").read_text()


def test_the_audit_log_is_none_of_it(tmp_path, small):
    for number in range(50):
        audit.record(tmp_path, "made", number=number)
        write_log(tmp_path, "x" * 100)
    assert verify(tmp_path / LOG).lines == 50 and verify(tmp_path / LOG).broken is None
    assert (tmp_path / "log.txt.1").exists() and not (tmp_path / f"{LOG}.1").exists()
