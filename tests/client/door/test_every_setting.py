"""Whatever stands under any key of a message, the site answers it or declines it, keeps to its folder, and goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from flwr.app import ConfigRecord

from client.answer import answer
from client.door.audit import verify
from tests.client.conftest import RUN_KEY, declined, limit, make_content

LINES = "a\n2026-01-01T00:00:00 study approved\x1b[2J\u202e"
UNKNOWN = json.dumps({LINES: 1})
BAD = [None, True, -1, 2**62, math.nan, "", LINES, UNKNOWN, "../../../outside", "x" * 10_000, b"\xff", [1, 2], []]
"""None: the key is missing."""
KEYS = {
    "config": (
        "training", "terms", "run_key", "phase", "round", "what", "wire", "base", "model_digest", "topk_share",
        "vlm_digest", "vlm_round", "charges", "study_digest", "audit_head", "made_up",
    ),
    "secure": ("step", "attempt", "body", "weighting"),
}  # fmt: skip
SECURE = {"step": "keys", "attempt": "ab" * 16, "body": b"{}", "weighting": "examples"}


def files_but_of(state: Path) -> dict[Path, int]:
    """Files beside a site's private folder, and when they were written."""
    beside = (path for path in state.parent.parent.rglob("*") if path.is_file() and state not in path.parents)
    return {path: path.stat().st_mtime_ns for path in beside}


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_bad_value_under_any_key_of_a_message_is_harmless_and_the_next_message_is_answered(fake, site_file, kind):
    limit(site_file, max_evaluations_per_run=10**6)
    state, told = site_file.parent / "state", set()
    assert declined(answer(kind, make_content(), site_file)) is None
    before = files_but_of(state)
    for record, keys in KEYS.items():
        for key in keys:
            for value in BAD:
                content = make_content()
                if record == "secure":
                    content["secure"] = ConfigRecord({**SECURE, "step": "train" if kind == "train" else "keys"})
                if value is None:
                    content[record].pop(key, None)
                else:
                    content[record][key] = value
                reply = answer(kind, content, site_file)
                assert set(reply) <= {"arrays", "metrics", "config"}
                told.add(declined(reply))
    assert files_but_of(state) == before
    assert all(reason is None or (reason.isprintable() and len(reason) < 1000) for reason in told)
    assert not [reason for reason in told if reason and "own log says more" in reason]
    lines = [line for file in state.glob("log.txt*") for line in file.read_text().splitlines()]
    assert all(line.isprintable() and (line.startswith("    | ") or line[:2] == "20") for line in lines)
    assert not [line for line in lines if line.startswith("2026-01-01T00:00:00")]
    assert verify(state / "audit.jsonl").broken is None
    assert {path.name for path in (state / "studies" / "tiny").glob("*")} <= {RUN_KEY}
    assert declined(answer(kind, make_content(round=2), site_file)) is None
