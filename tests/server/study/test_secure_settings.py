"""Which studies can be summed securely, and who is told what where it cannot be."""

from __future__ import annotations

import json

import pytest

from dusss_core.errors import UserError
from server.rounds.coordinator import RoundFailed
from server.runs.events import Reporter
from server.simulation.simulate import simulate
from server.study.config import StudyConfig, load_study
from tests.server.rounds.test_secure import FOUR, short, study

__all__ = ["short"]


@pytest.mark.parametrize("strategy", ["fedmedian", "fedtrimmedavg", "krum"])
def test_strategies_that_need_single_updates_are_refused_with_a_remedy(strategy):
    with pytest.raises(ValueError, match=rf"{strategy}, which compares the updates of single sites: choose .*fedavg"):
        study(strategy=strategy)


def test_a_comparison_of_sizes_is_refused_with_a_remedy_and_off_by_itself():
    assert study().federation.max_norm_ratio is None
    with pytest.raises(ValueError, match="max_norm_ratio, which compares the sizes of single updates: set it to null"):
        study(max_norm_ratio=5)
    assert StudyConfig.model_validate(study().model_dump()).federation.secure_aggregation


def test_one_flag_turns_it_on():
    federation = load_study("demo", ["federation.secure_aggregation=true"]).federation
    assert federation.secure_aggregation and federation.max_norm_ratio is None


def test_one_site_alone_is_told_that_it_takes_two(tmp_path, quiet):
    with pytest.raises(
        UserError, match=r"at least 2 training sites \(federation.secure_aggregation\), and there are 1"
    ):
        simulate(study(FOUR[:1]), tmp_path, reporter=quiet)


def test_a_site_without_sentences_takes_no_part_in_a_sum_that_it_cannot_train_for(tmp_path, quiet):
    silent = [*FOUR[:3], {**FOUR[3], "text_missing": 1.0}]
    simulate(study(silent, both_phases=True, secure_threshold=3), tmp_path, reporter=Reporter())
    found = [json.loads(text) for text in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    accepted = {
        (line["phase"], line["site"]): line["accepted"] for line in found if line["round"] == 1 and line["site"] != "*"
    }
    assert accepted["pretrain", "alder"] and not accepted["pretrain", "dogwood"] and accepted["segment", "dogwood"]


def test_a_second_run_of_the_same_study_at_the_same_sites_is_told_to_change_its_seed(tmp_path, quiet):
    simulate(study(), tmp_path / "one", reporter=quiet)
    files = sorted((tmp_path / "one" / "sites").glob("*/site.yaml"))
    with pytest.raises(RoundFailed, match=r"of this very model in another run.*change the study's seed"):
        simulate(study(), tmp_path / "two", reporter=quiet, site_files=files)
    simulate(study().model_copy(update={"seed": 99}), tmp_path / "three", reporter=quiet, site_files=files)
