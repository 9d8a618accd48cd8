"""A simulated run that is evaluated again keeps what it has."""

from __future__ import annotations

import json

import pytest

from dusss_core.errors import UserError
from server.runs.events import Reporter
from server.simulation.simulate import evaluate, simulate
from tests.server.conftest import make_study
from tests.server.unreliable import Listener


class Killed(BaseException):
    pass


class KilledInRound1(Reporter):
    """Ends the process as soon as a site has answered."""

    def on_site_done(self, *_):
        raise Killed


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_verdict_of_a_compared_run_is_told_anew_and_kept(fake, quiet, tmp_path):
    first = simulate(make_study(), tmp_path, reporter=quiet, compare_with="local")
    told = Listener()
    again = evaluate(tmp_path, reporter=told)
    assert again["verdict"] == first["verdict"] and first["verdict"] in told.messages
    assert json.loads((tmp_path / "summary.json").read_text())["verdict"] == first["verdict"]


def test_a_run_without_comparisons_gets_no_verdict(fake, quiet, tmp_path):
    simulate(make_study(), tmp_path, reporter=quiet)
    assert "verdict" not in evaluate(tmp_path, reporter=quiet)


def test_a_run_without_a_saved_round_loses_nothing_by_it(fake, quiet, tmp_path):
    with pytest.raises(Killed):
        simulate(make_study(), tmp_path, reporter=KilledInRound1())
    (tmp_path / "report.html").write_text("of this run")
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="there is no final student yet"):
        evaluate(tmp_path, reporter=quiet)
    assert files_of(tmp_path) == before
