"""The benchmark of a federation's bookkeeping measures what it names."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest

from benchmarks import federation
from benchmarks.measured import HERE
from benchmarks.probes import shares


@pytest.mark.parametrize("share", shares.FUNCTIONS, ids=": ".join)
def test_each_share_of_a_round_names_a_function_that_is_there(share):
    places = [place for name in shares.FUNCTIONS[share] for place in shares.places(name)]
    assert any(callable(vars(owner).get(function)) for owner, function in places)


def test_each_second_counts_once_and_for_the_innermost_part():
    parts = shares.Shares()
    outer, inner = (shares.SITE, "outer"), (shares.SITE, "inner")
    with parts.part(outer):
        _work(0.05)
        with parts.part(inner):
            _work(0.1)
    cpu = parts.taken()["cpu"]
    assert 0.05 <= cpu["site: outer"] < 0.09
    assert 0.1 <= cpu["site: inner"] < 0.14


def test_only_settings_of_the_federation_can_be_set():
    from dusss_core.errors import UserError

    assert federation.overridden(["federation.wire=bfloat16"]) == {"wire": "bfloat16"}
    with pytest.raises(UserError, match=r"student\.width"):
        federation.overridden(["student.width=8"])


@pytest.mark.slow
def test_a_round_is_made_of_its_shares_and_training_is_none_of_its_cost(tmp_path):
    manifest = federation.data(tmp_path)
    settings = {"model": "small", "sites": 2, "rounds": 3, "shares": True}
    figures = federation.probe(HERE, settings, tmp_path, manifest)
    json.dumps(figures, allow_nan=False)
    assert figures["not_found"] == []
    rounds = figures["round_cpu_s"]
    assert sum(figures["shares_cpu_s"].values()) == pytest.approx(sum(rounds) / len(rounds), rel=0.2)
    training = figures["shares_cpu_s"]["site: training"]
    assert training > 0
    assert federation.beyond_training(figures, "cpu") == pytest.approx(sum(rounds) / len(rounds) - training)
    assert figures["bytes_down"] == figures["bytes_up"] > 0


def test_one_model_or_some_sites_can_be_chosen():
    chosen = Namespace(quick=True, model="paper", sites=[5])
    assert federation.cells(chosen) == [("paper", 5)]
    assert {model for model, _ in federation.cells(Namespace(quick=True, model=None, sites=None))} == {"small", "paper"}


def _work(seconds: float) -> None:
    import time

    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
