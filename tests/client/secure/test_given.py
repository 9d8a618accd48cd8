"""Two sums of one model's updates cannot be subtracted: a site gives its part of the second to nobody."""

from __future__ import annotations

import pytest

from client.secure.given import FILE, Given, name_of_model
from client.secure.part import FOLDER
from dusss_core.phases import Phase
from feddusss.secagg.records import Refused
from tests.client.conftest import declined
from tests.client.secure.test_secure import OTHERS, Round, flat, pinned
from tests.feddusss.sessions import occasion
from tests.server.conftest import make_study

OTHER_RUN = "cd" * 16


@pytest.fixture
def alder(fake, site_file):
    """A site that takes part in sums of two."""
    return pinned(site_file, threshold=2)


def patience(rounds: int):
    return make_study(method={"preset": "mean_teacher"}, segment__patience=rounds).training()


def summed(round: Round) -> None:
    round.keys().deal().train()
    round.sum(len(flat(round.answer)))


def test_settings_that_change_nothing_do_not_get_a_second_sum_of_the_same_model(alder):
    summed(Round(alder, study=patience(20)))
    second = Round(alder, study=patience(21), run=OTHER_RUN, threshold=2, others=OTHERS[:1]).keys().deal().train()
    assert "sum of this very model in another run" in declined(second.answer)
    assert "spent" not in second.answer["config"]  # no round that the coordinator may skip: the study must be changed


def test_other_weights_do_not_get_a_second_sum_of_the_same_model(alder):
    """Of two sites of one size the difference of the two sums would hold nothing: it would be the third's update."""
    summed(Round(alder, weighting="examples"))
    second = Round(alder, weighting="uniform", run=OTHER_RUN).keys().deal().train()
    assert "sum of this very model in another run" in declined(second.answer)


@pytest.mark.parametrize("first_to_vote", [1, 2])
def test_of_two_runs_at_once_one_gets_its_sum(alder, first_to_vote):
    rounds = [Round(alder, study=patience(20)), Round(alder, study=patience(21), run=OTHER_RUN)]
    for one in rounds:
        one.keys().deal().train()
    first, second = rounds if first_to_vote == 1 else reversed(rounds)
    first.sum(len(flat(first.answer)))
    with pytest.raises(AssertionError, match="another run"):
        second.sum(len(flat(second.answer)))


def test_a_model_of_a_lost_sum_is_trained_in_a_later_round_with_the_same_sites_alone(alder):
    summed(Round(alder))
    fewer = Round(alder, round=2, threshold=2, others=OTHERS[:1]).keys().deal().train()
    assert declined(fewer.answer) is None  # masked, and of no use to anybody:
    with pytest.raises(AssertionError, match="ask the same sites as then"):
        fewer.sum(len(flat(fewer.answer)))
    summed(Round(alder, round=3))


def test_other_settings_do_not_get_the_model_of_a_lost_sum(alder):
    summed(Round(alder, study=patience(20)))
    other = Round(alder, round=2, study=patience(21)).keys().deal().train()
    assert "with other settings or other sites" in declined(other.answer)


def test_what_an_older_release_noted_is_still_given_to_no_other_run(alder):
    summed(Round(alder))
    path = alder.parent / "state" / FOLDER / FILE
    lines = [line.split()[:2] for line in path.read_text().splitlines()]
    path.write_text("".join(f"{name} {run}\n" for name, run in lines))
    second = Round(alder, run=OTHER_RUN)
    with pytest.raises(AssertionError, match="another run"):
        second.keys()


def test_a_model_of_another_phase_is_another(tmp_path):
    about = occasion(2)
    Given(tmp_path, "ab").note(name_of_model(Phase.PRETRAIN, "1" * 64), about, ["a", "b"])
    other = about.model_copy(update={"task": "1" * 64, "round": 9})
    Given(tmp_path, "cd").check_model(name_of_model(Phase.SEGMENT, "1" * 64), other)
    with pytest.raises(Refused):
        Given(tmp_path, "cd").check_model(name_of_model(Phase.PRETRAIN, "1" * 64), other)
