"""The preflight names what stands in a site's way, says what to do, and changes nothing."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import client.preflight
from client.consent.book import Book
from client.consent.proposal import Proposal
from client.door.audit import record
from client.preflight import check, machine
from client.secure.keys import make_key
from feddusss.release import code_digest
from tests.client.conftest import limit
from tests.client.preflight.looks import found, reachable, tree
from tests.deployment import environment
from tests.server.conftest import make_study


@pytest.mark.parametrize("used", [False, True])
def test_a_site_that_is_ready_is_told_so_and_nothing_is_changed(site, authority, capsys, used):
    if used:
        record(site.parent / "state", "client started")
        (site.parent / "state" / "client.lock").touch()
    with reachable(site, authority.server()) as server:
        before = tree(site.parent.parent)
        assert check(site) == 0
        assert tree(site.parent.parent) == before
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "ready" and all(line.startswith("ok ") for line in lines[:-1])
    subjects = {line[8:22].strip() for line in lines[:-1]}
    assert subjects >= {
        "config", "data", "text encoder", "device", "privacy", "memory", "disk", "key", "certificates", "coordinator",
        "clock", "registration", "release", "versions", "app", "client", "audit log",
    }  # fmt: skip
    assert len(server.requests) == 1


def test_the_app_hash_is_that_of_the_bundle_which_the_guard_accepts(site):
    from feddusss.bundle import release_bundle

    assert hashlib.sha256(release_bundle()[0]).hexdigest() in found(site)["app"].message


def test_a_missing_key_is_told_and_the_rest_still_checked(site, authority):
    (site.parent / "site.key").unlink()
    with reachable(site, authority.server()) as server:
        both = found(site)
        assert server.requests == []
    assert both["key"].level == "error" and "python -m client init" in both["key"].remedy
    assert both["clock"].level == "ok" and both["registration"].level == "warning"


def test_a_key_that_others_can_read_is_told(site):
    (site.parent / "site.key").chmod(0o640)
    assert "chmod 600" in found(site)["key"].remedy


def test_a_key_on_another_curve_is_told(site):
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    (site.parent / "site.key").write_bytes(key)
    assert "not a key on the curve P-384" in found(site)["key"].message


def test_a_key_that_is_not_the_one_that_was_sent_is_told(site, tmp_path):
    make_key(tmp_path / "other.key", "birch")
    (site.parent / "site.key").write_bytes((tmp_path / "other.key").read_bytes())
    told = found(site)["key"]
    assert told.level == "error" and "is not the key that" in told.message


def test_a_full_disk_is_told(site, monkeypatch):
    usage = shutil.disk_usage(site.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**8))
    assert found(site)["disk"].level == "error"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 10**9))
    assert found(site)["disk"].level == "warning"


def test_a_state_dir_that_cannot_be_written_is_told(site, monkeypatch):
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    assert "may not write" in found(site)["disk"].message


def test_a_state_dir_that_others_can_read_is_told(site):
    (site.parent / "state").mkdir(mode=0o755)
    assert "chmod 700" in found(site)["state_dir"].remedy
    (site.parent / "state").chmod(0o700)
    assert "state_dir" not in found(site)


def test_little_memory_is_told(site, monkeypatch):
    monkeypatch.setattr(machine, "available_memory_gb", lambda: 1.0)
    assert found(site)["memory"].level == "error"
    monkeypatch.setattr(machine, "available_memory_gb", lambda: 3.0)
    assert found(site, "limits.max_memory_gb=4")["memory"].level == "warning"


@pytest.mark.parametrize("has", [True, False])
def test_a_processor_that_multiplies_in_bfloat16_is_told(site, has, monkeypatch):
    monkeypatch.setattr("dusss_core.runtime.has_bfloat16_instructions", lambda: has)
    assert ("bfloat16" in found(site, "device=cpu")["device"].message) == has


def test_a_device_that_is_not_there_is_told(site):
    assert "not available" in found(site, "device=cuda:17")["device"].message


def test_a_text_encoder_that_is_not_there_is_told(site):
    both = found(site, "limits.text_encoders=[/nowhere/bert]")
    assert both["text encoder"].level == "error" and "no such folder" in both["text encoder"].message


def test_a_damaged_picture_or_manifest_is_told(site):
    picture = next(path for path in site.parent.rglob("*.png"))
    for path in site.parent.rglob("*.png"):
        path.write_bytes(picture.read_bytes()[:60])
    assert "row " in found(site)["data"].message
    (site.parent / "manifest.csv").unlink()
    assert "no such file" in found(site)["data"].message


def test_a_client_that_runs_is_told(site):
    (site.parent / "state").mkdir()
    with (site.parent / "state" / "client.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert found(site)["client"].message == "is running for this site"
    assert found(site)["client"].message == "not running"


def test_a_broken_audit_log_is_told(site):
    for number in range(3):
        record(site.parent / "state", "made", number=number)
    log = site.parent / "state" / "audit.jsonl"
    log.write_text(log.read_text().replace('"number":1', '"number":7'))
    assert "line 2 was changed" in found(site)["audit log"].message


def test_another_release_of_flower_is_told(site, monkeypatch):
    assert found(site)["versions"].level == "ok"
    monkeypatch.setattr("feddusss.flower.RANGE", ((1, 98), (1, 99)))
    assert "flwr>=1.98,<1.100" in found(site)["versions"].remedy


# The preflight itself.


def test_the_digest_of_the_code_follows_its_files(tmp_path):
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "app.py").write_text("x = 1\n")
    first = code_digest(tmp_path)
    (tmp_path / "client" / "notes.txt").write_text("no code")
    assert code_digest(tmp_path) == first
    (tmp_path / "client" / "app.py").write_text("x = 2\n")
    assert code_digest(tmp_path) != first


def test_a_config_that_cannot_be_used_ends_it(site, capsys):
    site.write_text("sight: alder\n")
    assert check(site) == 2
    out = capsys.readouterr().out
    assert "unknown key 'sight'" in out and "did you mean 'site'" in out and out.endswith("can take part\n")


def test_without_a_coordinator_a_site_is_not_ready(site_file):
    assert "no 'superlink'" in found(site_file)["coordinator"].message


def test_a_check_that_fails_is_a_line_and_no_traceback(site, monkeypatch, capsys):
    monkeypatch.setattr(machine, "disk", lambda site: 1 / 0)
    assert check(site) == 2
    out = capsys.readouterr().out
    assert "could not be checked: ZeroDivisionError" in out and "Traceback" not in out


def test_a_check_that_hangs_holds_nobody(site, monkeypatch):
    monkeypatch.setattr(client.preflight, "LONGEST_S", 0.5)
    monkeypatch.setattr(client.preflight, "_Task", _short)
    monkeypatch.setattr(machine, "data", lambda site: time.sleep(60))
    started = time.monotonic()
    assert "could not be told within" in found(site)["data"].message
    assert time.monotonic() - started < 20


def _short(subject, check, longest_s=0.5, task=client.preflight._Task):
    return task(subject, check, longest_s)


@pytest.mark.slow
def test_the_command_line_ends_with_2_and_lines(site):
    command = [sys.executable, "-m", "client", "--site", str(site), "--check"]
    started = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(site.parent / "home"), cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 2 and "refuses the connection" in done.stdout and "Traceback" not in done.stderr
    assert time.monotonic() - started < 60
    assert not (site.parent / "state").exists() and not (site.parent / "home").exists()


def test_a_study_that_waits_for_a_yes_is_told(site):
    assert "no person is asked" in found(site)["approvals"].message
    limit(site, approval=True)
    assert found(site)["approvals"].message == "0 approved, none waits"
    study = make_study()
    Book(site.parent / "state").ask(Proposal(study.training(), study.terms({})))
    finding = found(site)["approvals"]
    assert finding.level == "warning" and study.study in finding.message and "client show" in finding.remedy
