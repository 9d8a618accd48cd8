"""What a run on disk remembers, and what it forgets when rounds are trained again."""

from __future__ import annotations

import json

from dusss_core.phases import Phase
from server.runs.runfolder import open_run
from tests.server.conftest import make_study


def test_lines_of_rounds_that_are_trained_again_are_dropped_and_no_others(tmp_path):
    run = open_run(tmp_path / "run", make_study())
    done = [("pretrain", 1), ("pretrain", 2), ("pretrain", 3), ("segment", 1)]
    run.outputs.add([{"phase": phase, "round": round, "site": "alder"} for phase, round in done])
    run.outputs.drop_after(Phase.PRETRAIN, 2)
    lines = [json.loads(text) for text in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["round"]) for line in lines] == done[:2]
