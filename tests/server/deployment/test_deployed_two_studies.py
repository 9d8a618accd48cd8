"""Real processes on loopback: a study begins while another one trains at the same hospitals, and both are finished."""

from __future__ import annotations

import json
import os

import pytest

from client.state.chain import LOG, verify
from dusss_core.files import write_text
from feddusss import configfile, standing
from tests.deployment import PATHS, wait_until
from tests.server.conftest import make_study
from tests.server.deployed import events, federation, wait_for_event

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
STEP_S = 7.0
SLOW = f"""
import sys, time
if "client.node.worker" in sys.orig_argv:
    from client.work import observe
    made = observe.step_made
    def step_made(*told):
        time.sleep({STEP_S})
        made(*told)
    observe.step_made = step_made
"""
"""Each step takes so long, on whatever machine. A round of lungs takes alder ten steps, one of hearts two."""


def study_of(name, rounds, epochs, **federation):
    return make_study(
        study=name,
        method={"preset": "supervised"},
        segment__rounds=rounds,
        segment__epochs=epochs,
        federation={"sites": ["alder", "birch"], "min_sites": 2, "retries": 0, "start_timeout_s": 600, **federation},
    )


def start(there, study):
    """Submit a study; its folder, and Flower's number."""
    out = there.folder / study.study
    out.mkdir()
    write_text(there.folder / f"{study.study}.yaml", configfile.dump(study))
    return out, there.link.start_run(study=str(there.folder / f"{study.study}.yaml"), out=str(out))


def test_two_studies_take_turns_and_the_one_that_waits_says_for_which(tmp_path):
    lungs = study_of("lungs", 3, 5)
    hearts = study_of("hearts", 2, 1, round_timeout_s=60)  # a round of lungs takes longer
    write_text(tmp_path / "slow" / "sitecustomize.py", SLOW)
    with federation(tmp_path, lungs) as there:
        for client in there.clients.values():
            client.start(PYTHONPATH=f"{tmp_path / 'slow'}{os.pathsep}{PATHS}")
        there.wait_online(set(there.clients), 600)
        first, number = start(there, lungs)
        wait_for_event(first, "on_site_start", seconds=600)
        alder = there.clients["alder"]
        wait_until(lambda: "lungs" in _at_work(alder), 240, "alder to train for lungs")
        second, other = start(there, hearts)
        wait_for_event(second, "on_site_busy", lambda arguments: arguments == ["alder", "lungs"], 600)
        # the command takes its time on a busy machine, and hospitals go on meanwhile
        wait_until(lambda: "alder: waiting: alder trains for lungs" in there.told("status", second), 240)
        for run in (number, other):
            there.link.wait_for_run(run, 900)
    at = {name: {event["event"]: event["at"] for event in reversed(events(out))} for name, out in
          (("lungs", first), ("hearts", second))}  # fmt: skip
    assert at["hearts"]["on_study"] < at["lungs"]["on_round_end"], "who trains says who it is"
    for out, sizes in ((first, lungs), (second, hearts)):
        happened = [event for event in events(out) if event["event"] in ("on_round_end", "on_site_refused", "end")]
        assert [event["event"] for event in happened] == ["on_round_end"] * sizes.segment.rounds + ["end"], happened
        assert happened[-1]["args"][0] == 0
        assert set(json.loads((out / "summary.json").read_text())["sites"]) == {"alder", "birch"}
    lines = [json.loads(line) for line in (alder.state_dir / LOG).read_text(encoding="utf-8").splitlines()]
    said = [line["fields"]["busy"] for line in lines if line["fields"].get("kind") == standing.KIND]
    # unnamed is a site that has just been handed a message and has not read of which study it is
    assert "lungs" in said and set(said) <= {"", "lungs", "hearts", standing.UNNAMED}
    assert verify(alder.state_dir / LOG).broken is None
    assert "@" not in alder.output and "Traceback" not in alder.log


def _at_work(client):
    path = client.state_dir / "flwr" / "at_work"
    return path.read_text() if path.exists() else ""
