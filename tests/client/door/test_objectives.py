"""What a site says to a study of another objective than the project's own: its limits, and what cannot be."""

from __future__ import annotations

import json
import re

import pytest

import client.door.policy
from client.answer import answer
from tests.client.conftest import declined, limit, make_content
from tests.client.fake_private import make_private
from tests.server.conftest import make_study


def study_of(objective, **changes):
    return make_study(method={"objective": objective}, **changes).training()


def told(kind, site_file, **content):
    return declined(answer(kind, make_content(**content), site_file))


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_site_takes_part_in_the_objectives_that_its_own_file_names(fake, site_file, kind):
    limit(site_file, objectives=["dusss", "cct"])
    reason = told(kind, site_file, study=study_of("mcnet"))
    assert reason == "this site takes no part in studies of objective mcnet (limits.objectives)"
    assert "limits.objectives" not in (told(kind, site_file, study=study_of("cct")) or "")
    assert not (site_file.parent / "state" / "studies" / "mcnet").exists()


def test_without_such_a_limit_a_site_takes_part_in_any(fake, site_file):
    assert told("train", site_file, study=study_of("bcp")) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": {"objective": "mcnett"}}, "not valid in this release: 'method.objective': .*'mcnet'"),
        ({"method": {"objective": "os.system"}}, "not valid in this release: 'method.objective'"),
        ({"method": {"pretraining": "mgcaa"}}, "not valid in this release: 'method.pretraining'"),
        ({"student": {"network": "unett"}}, "not valid in this release: 'student.network'"),
        ({"method": {"objective": "mcnet", "text_mask": True}}, "objective: mcnet has no text_mask"),
        (
            {"method": {"objective": "mcnet"}, "student": {"encoder": "test_resnet"}},
            "mcnet does not work on encoder: it needs one of small_unet, unet .*; on encoder work dusss, "
            "mean_teacher_mse, bcp",
        ),
    ],
)
def test_what_this_release_cannot_do_is_declined_and_nothing_is_imported_by_name(fake, site_file, changes, reason):
    settings = json.loads(make_study().training().model_dump_json())
    for section, values in changes.items():
        settings[section] = values
    text = told("train", site_file, training=json.dumps(settings))
    assert text is not None and re.search(reason, text), text
    assert not (site_file.parent / "state" / "studies").exists()


@pytest.mark.parametrize(
    ("objective", "millions"),
    [
        ("dusss", 1.813329),
        ("mcnet_v1", 2.576754),
        ("mcnet", 3.209619),
        ("cct", 3.711924),
        ("bcp", 1.813329),
        ("ssnet", 1.819475),
        ("ucmt", 3.626658),
    ],
)
def test_what_an_objective_builds_beside_the_network_counts_as_parameters(fake, site_file, objective, millions):
    study = study_of(objective, student={"network": "small_unet"})
    settings = client.door.policy._networks(study)
    assert client.door.policy._parameters("student", settings) == round(millions * 1e6)
    limit(site_file, max_parameters_m=2)
    reason = told("train", site_file, study=study)
    assert (reason is None) == (millions < 2)
    assert reason is None or f"{millions:.1f} million parameters; this site allows 2" in reason


def test_a_private_site_abstains_from_an_objective_that_mixes_records(fake, site_file):
    make_private(site_file)
    student = {"width": 4, "norm": "group"}
    reply = answer("train", make_content(study=study_of("bcp", student=student)), site_file)
    assert reply.config_records["config"]["abstains"]
    assert "bcp mixes the records of a batch" in declined(reply)
    assert "choose one of dusss, mean_teacher_mse, mcnet, mcnet_v1, cct" in declined(reply)
