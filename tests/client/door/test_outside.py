"""What a message quotes writes no line of its own at a site: not into its log, its audit log, its screen."""

from __future__ import annotations

import json

import pytest

from client.answer import answer
from client.door.audit import record
from client.door.declines import Declines
from client.node.console import Console
from client.state.store import write_log
from tests.client.conftest import declined, make_content
from tests.server.conftest import make_study

FORGED = "x\n2026-01-01T00:00:00 train segment round 9: answered\x1b[2J"


def settings(**changes):
    return json.dumps(json.loads(make_study(method={"preset": "mean_teacher"}).training().model_dump_json()) | changes)


def test_an_unknown_key_writes_no_line_of_its_own_into_the_log(fake, site_file):
    reason = declined(answer("train", make_content(training=settings(**{FORGED: 1})), site_file))
    assert "Extra inputs" in reason and "\n" not in reason and "\x1b" not in reason
    state = site_file.parent / "state"
    lines = (state / "log.txt").read_text().splitlines()
    assert len(lines) == 1 and "\\n2026" in lines[0] and "\x1b" not in lines[0]
    assert "\x1b" not in (state / "audit.jsonl").read_text()


@pytest.mark.parametrize("key", ["x" * 90_000, "\n" * 40_000])
def test_a_reason_that_quotes_is_short(fake, site_file, key):
    reason = declined(answer("train", make_content(training=settings(**{key: 1})), site_file))
    assert len(reason) < 1200
    assert (site_file.parent / "state" / "log.txt").stat().st_size < 1300


@pytest.mark.parametrize("training", ["[" * 90_000, '{"vlm":' * 10_000, '{"segment": {"optimizer": {"lr": 1e400}}}'])
def test_settings_that_nobody_wrote_are_declined_by_a_sentence(fake, site_file, training):
    reason = declined(answer("train", make_content(training=training), site_file))
    assert reason.startswith("the study's settings are not valid in this release") and len(reason) < 300


def test_an_error_that_quotes_writes_no_line_of_its_own(tmp_path):
    write_log(tmp_path, f"Traceback\n  {FORGED}")
    lines = (tmp_path / "log.txt").read_text().split("\n")
    assert lines[1].startswith("    | ") and lines[2].startswith("    | 2026") and "\x1b" not in "".join(lines)


def test_the_audit_log_keeps_escaped_texts(tmp_path):
    record(tmp_path, "message", **{"kind": FORGED, FORGED: ["\x1b"]})
    fields = json.loads((tmp_path / "audit.jsonl").read_text())["fields"]
    assert "\x1b" not in str(fields) and "\n" not in "".join([*fields, *map(str, fields.values())])


def test_the_screen_shows_no_line_that_came_from_outside():
    said, kept = [], []

    class Kept:
        info = debug = staticmethod(kept.append)

    class Terminal:
        print = staticmethod(lambda text, **_: said.append(text))

    console = Console(Kept, Terminal, None)
    console.say(FORGED)
    console.keep(FORGED)
    Declines(said.append).declined("training", FORGED)
    assert len(said) == 2 and not any("\x1b" in text or "\n2026" in text for text in (*said, *kept))
