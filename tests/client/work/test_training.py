"""A round of training at a site, with the true method."""

from __future__ import annotations

import pytest
import torch

from client.answer import answer
from client.work.workbench import forget
from dusss_core.phases import Phase
from dusss_core.training import initial_shared
from feddusss import wire
from tests.client.conftest import declined, make_content, tensors_of
from tests.server.conftest import make_study


@pytest.fixture
def study():
    forget()
    yield make_study(method={"preset": "mean_teacher"}, segment__epochs=1).training()
    forget()


def test_a_message_is_after_the_round_as_it_came(site_file, study):
    """The model is read where the message lies, and other sites of this process are given the same bytes."""
    content = make_content(study=study)
    content["arrays"] = wire.pack(initial_shared(study, Phase.SEGMENT))
    before = bytes(content["arrays"][wire.KEY].data)
    reply = answer("train", content, site_file)
    assert declined(reply) is None
    assert content["arrays"][wire.KEY].data == before
    came, left = wire.unpack(content["arrays"]), tensors_of(reply)
    assert came.keys() == left.keys() and not all(torch.equal(came[name], left[name]) for name in came)


def test_an_answer_is_not_changed_by_the_next_round(site_file, study):
    """The trainer's own tensors are packed, and it goes on with them."""
    content = make_content(study=study)
    content["arrays"] = wire.pack(initial_shared(study, Phase.SEGMENT))
    reply = answer("train", content, site_file)
    before = bytes(reply["arrays"][wire.KEY].data)
    second = make_content(study=study, round=2)
    second["arrays"] = reply["arrays"]
    assert declined(answer("train", second, site_file)) is None
    assert reply["arrays"][wire.KEY].data == before


@pytest.mark.parametrize("objective", ["bcp", "mean_teacher_mse"])
def test_of_one_picture_with_a_deepest_map_of_one_pixel_the_study_hears_what_to_change(site_file, objective):
    """A picture of 32 pixels is one on the last level of an encoder, and these methods show their networks parts of a
    batch."""
    forget()
    small = {"method": {"objective": objective}, "student": {"encoder": "test_resnet"}, "segment__batch": 2}
    study = make_study(**small).training()
    content = make_content(study=study, round=2)
    content["arrays"] = wire.pack(initial_shared(study, Phase.SEGMENT))
    told = declined(answer("train", content, site_file))
    assert "one picture" in told and "segment.batch or image.size, or student.norm: group" in told
    forget()
