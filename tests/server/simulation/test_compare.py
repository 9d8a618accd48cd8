"""What a federation is compared with: other ways to train, on the same training pictures, for the same test."""

from __future__ import annotations

import csv
import json

import pytest
import yaml

import dusss_core.training
from dusss_core import objectives, pretraining
from dusss_core.config import PAPER_BEYOND_METHOD, PRESETS, MethodConfig
from dusss_core.errors import UserError
from dusss_core.files import read_tensors
from dusss_core.manifest import read_manifest
from dusss_core.objectives.bcp import BCP
from dusss_core.objectives.mcnet import MCNet
from dusss_core.phases import Phase
from server.runs.runfolder import read_study
from server.simulation import compare as compare_module
from server.simulation.compare import METHODS, why_not, with_method, with_preset
from server.simulation.local import load_local
from server.simulation.simulate import simulate
from tests.server.conftest import HOSPITALS, make_study
from tests.server.unreliable import Listener


def test_every_method_is_trained_on_the_training_pictures_alone(fake, quiet, tmp_path, monkeypatch):
    trained = {}

    def watched(kind):
        build = kind.__init__

        def init(self, config, site, train, val, *others, **settings):
            trained.setdefault(site, set()).add((train.ids, val.ids))
            build(self, config, site, train, val, *others, **settings)

        monkeypatch.setattr(kind, "__init__", init)

    watched(fake.Pretrainer)
    watched(fake.Segmenter)
    simulate(make_study(), tmp_path, reporter=quiet, compare_with="local,centralized")

    def pictures(site, split, prefix=""):
        records = read_manifest(tmp_path / "sites" / site / "manifest.csv")
        return tuple(prefix + record.id for record in records if record.split == split)

    names = [hospital["name"] for hospital in HOSPITALS]
    pooled = [sum((pictures(name, split, f"{name}/") for name in names), ()) for split in ("train", "val")]
    assert trained == {
        **{name: {(pictures(name, "train"), pictures(name, "val"))} for name in names},
        "centralized": {tuple(pooled)},
    }
    assert all(pictures(name, "test") for name in names)


def test_every_sites_own_model_is_tested_at_every_site(fake, quiet, tmp_path):
    names = [hospital["name"] for hospital in HOSPITALS]
    summary = simulate(make_study(), tmp_path, reporter=quiet, compare_with="local")
    local = summary["compare"]["local"]
    assert {model: sorted(row) for model, row in local["across"].items()} == {name: sorted(names) for name in names}
    for model in names:
        assert local["across"][model][model] == local["sites"][model]["dice"]
        student, _ = read_tensors(tmp_path / "compare" / "local" / f"{model}.safetensors")
        for name in names:
            site = load_local(tmp_path / "sites" / name / "site.yaml", make_study())
            expected = fake.evaluate_student(None, student, site.splits["test"])["dice"]
            assert local["across"][model][name] == pytest.approx(expected)
    # what is known is not tested again
    again = simulate(make_study(), tmp_path, reporter=quiet, compare_with="local", resume=True)
    assert again["compare"]["local"] == json.loads(json.dumps(local))


def test_models_of_very_many_sites_are_tested_at_home_alone(fake, quiet, tmp_path, monkeypatch):
    assert compare_module.MOST_ACROSS == 40
    monkeypatch.setattr(compare_module, "MOST_ACROSS", 1)
    local = simulate(make_study(), tmp_path, reporter=quiet, compare_with="local")["compare"]["local"]
    assert "across" not in local and len(local["sites"]) == 2


def needs_labels(fake, monkeypatch):
    """Of the stand-in's phases the second is for sites with labels alone."""
    monkeypatch.setattr(
        dusss_core.training,
        "can_train",
        lambda config, phase, train: (
            "the site has no labelled pictures"
            if phase == Phase.SEGMENT and not train.labelled.any()
            else fake.can_train(config, phase, train)
        ),
    )


def test_a_site_that_cannot_train_alone_is_left_out_with_its_reason(fake, tmp_path, monkeypatch):
    needs_labels(fake, monkeypatch)
    told, study = Listener(), make_study([*HOSPITALS, {**HOSPITALS[0], "name": "cedar", "label_fraction": 0.0}])
    summary = simulate(study, tmp_path, reporter=told, compare_with="local,centralized")
    local, pooled = (summary["compare"][method] for method in ("local", "centralized"))
    assert set(local["sites"]) == set(local["across"]) == {"alder", "birch"}
    assert set(pooled["sites"]) == {"alder", "birch", "cedar"}
    assert local["dice_mean"] == pytest.approx(sum(site["dice"] for site in local["sites"].values()) / 2)
    assert not (tmp_path / "compare" / "local" / "cedar.safetensors").exists()
    assert told.messages.count("local: cedar is left out: the site has no labelled pictures") == 1
    assert "at cedar" not in summary["verdict"]


def test_where_no_site_can_train_alone_the_comparison_ends_with_the_reasons(fake, quiet, tmp_path, monkeypatch):
    study = make_study()
    simulate(study, tmp_path, reporter=quiet)
    monkeypatch.setattr(compare_module, "why_no_student", lambda study, site: "nothing to learn from")
    told = Listener()
    local = simulate(study, tmp_path, reporter=told, compare_with="local", resume=True)["compare"]["local"]
    reasons = "alder: nothing to learn from; birch: nothing to learn from"
    assert local == {"reason": f"no site can train alone: {reasons}"}
    assert any(text.startswith("local: not compared: no site can train alone") for text in told.messages)


def other_way_round(preset):
    """The switches of a study that differs from the preset wherever it can."""
    wanted = MethodConfig(preset=preset)
    return {name: not value for name, value in wanted.model_dump().items() if isinstance(value, bool)}


@pytest.mark.parametrize("preset", [method for method in METHODS if method in PRESETS])
def test_a_preset_that_is_compared_has_its_own_switches_whatever_the_study_sets(preset):
    named = {"teacher", "text_mask", "preset", *PRESETS[preset]}
    study = make_study(method=other_way_round(preset))
    method = with_preset(study, preset).method
    assert method.model_dump(include=named) == MethodConfig(preset=preset).model_dump(include=named)
    # what it does not name is the study's, so that the figures differ by the preset alone
    assert method.model_dump(exclude=named) == study.method.model_dump(exclude=named)
    beyond = PAPER_BEYOND_METHOD if preset == "paper" else {}
    others = {"method": True, **{section: set(literal) for section, literal in beyond.items()}}
    assert with_preset(study, preset).model_dump(exclude=others) == study.model_dump(exclude=others)


def test_the_paper_that_is_compared_is_the_paper_beyond_the_method_too():
    compared, paper = with_preset(make_study(), "paper"), make_study(method={"preset": "paper"})
    assert compared == paper


def test_a_preset_is_compared_as_a_federation_of_its_own_settings(fake, quiet, tmp_path):
    study = make_study(method={"teacher": False, "text_mask": True})
    simulate(study, tmp_path, reporter=quiet, compare_with="mean_teacher")
    federated, _ = read_study(tmp_path)
    compared, _ = read_study(tmp_path / "compare" / "mean_teacher")
    assert (federated.method.teacher, federated.method.text_mask) == (False, True)
    assert (compared.method.teacher, compared.method.text_mask) == (True, False)


def test_every_method_of_either_step_is_known_by_one_word_that_means_one_thing():
    assert {*PRESETS, *objectives.TABLE, *pretraining.TABLE} < set(METHODS)
    presets, first, second = (set(names) - {"dusss"} for names in (PRESETS, pretraining.TABLE, objectives.TABLE))
    assert not presets & first and not presets & second and not first & second


@pytest.mark.parametrize("name", [name for name in METHODS if name in objectives.TABLE])
def test_a_method_of_step_2_that_is_compared_is_the_study_with_another_objective(name):
    study = make_study(
        method={"preset": "mean_teacher", "sss": False}, federation={"select": "last"}, segment__weight_semi=0.5
    )
    if name == "supervised_with_text":  # several networks, and none is the study's
        with pytest.raises(UserError, match="does not work on unet"):
            with_method(study, name)
        return
    compared = with_method(study, name)
    fresh = MethodConfig(objective=name)
    asked = {"objective", "teacher", "text_mask", "pretraining"}
    assert compared.method.model_dump(include=asked) == fresh.model_dump(include=asked)
    networks = objectives.objective_of(compared).networks
    own = {"method"} if study.student.kind in networks else {"method", "student"}
    assert compared.model_dump(exclude=own) == study.model_dump(exclude=own)
    assert compared.student.kind in networks and compared.student.width == study.student.width
    assert compared.method.sss is False


def test_a_method_with_a_network_of_its_own_brings_it(monkeypatch):
    study = make_study(student={"encoder": "test_resnet", "width": 8}, method={"preset": "mean_teacher"})
    assert with_method(study, "bcp").student == study.student
    monkeypatch.setattr(BCP, "networks", frozenset({"small_unet"}))
    student = with_method(study, "bcp").student
    assert (student.network, student.encoder, student.width) == ("small_unet", None, 8)
    # of several none is chosen, unless it has the name of the method's module
    with pytest.raises(UserError, match="mcnet does not work on encoder"):
        with_method(study, "mcnet")
    monkeypatch.setitem(objectives.TABLE, "mcnet", ("small_unet", "MCNet"))
    monkeypatch.setattr(objectives, "objective_of", lambda config: MCNet)
    assert with_method(study, "mcnet").student.network == "small_unet"
    # on a network that it works on it stays
    assert with_method(make_study(), "mcnet").student.network == "unet"


def test_a_study_of_another_method_is_compared_with_dusss():
    method = with_method(make_study(method={"objective": "bcp"}), "dusss").method
    assert (method.objective, method.pretraining, method.teacher, method.text_mask) == ("dusss", "dusss", True, True)


def test_a_method_of_step_1_comes_before_the_projects_own_step_2(monkeypatch):
    monkeypatch.setitem(pretraining.TABLE, "another", ("dusss", "Dusss"))
    monkeypatch.setattr("server.simulation.compare.configfile.parse", lambda kind, values, name: values["method"])
    method = with_method(make_study(method={"objective": "bcp"}), "another")
    assert (method["objective"], method["pretraining"]) == ("dusss", "another")
    # whether these are on follows from its name
    assert not {"teacher", "text_mask", "sss", "dcl", "ltg"} & method.keys()


def results_of(tmp_path, study, quiet, methods, **more):
    summary = simulate(study, tmp_path, reporter=quiet, compare_with=methods, **more)
    assert summary["compare"] == json.loads((tmp_path / "summary.json").read_text())["compare"]
    assert list(summary["compare"]) == methods.split(",")
    return summary["compare"]


def test_one_word_runs_another_method_on_the_same_sites(fake, quiet, tmp_path):
    found = results_of(tmp_path, make_study(), quiet, "bcp,fixmatch")
    for name, result in found.items():
        assert set(result["sites"]) == {"alder", "birch"} and result["dice_mean"] > 0
        compared, _ = read_study(tmp_path / "compare" / name)
        assert compared.method.objective == name
        assert not (tmp_path / "compare" / name / "sites").exists()


def test_what_is_compared_is_weighed_as_the_federation_is(fake, quiet, tmp_path):
    study = make_study(federation__sizes={"alder": 1, "birch": 100})
    for name, result in results_of(tmp_path, study, quiet, "local,bcp").items():
        dice = {site: figures["dice"] for site, figures in result["sites"].items()}
        pictures = result["sites"]["birch"]["n_test"]
        assert dice["alder"] != dice["birch"] and pictures > 1, name
        weighted = (dice["alder"] + pictures * dice["birch"]) / (1 + pictures)
        assert result["dice_weighted"] == pytest.approx(weighted), name


def test_a_method_that_does_not_work_on_the_network_says_so_at_the_start_and_the_others_go_on(fake, tmp_path):
    told = Listener()
    study = make_study(student={"encoder": "test_resnet"}, method={"preset": "mean_teacher"})
    found = results_of(tmp_path, study, told, "mcnet,local,bcp")
    assert "mcnet does not work on encoder" in found["mcnet"]["reason"]
    assert found["local"]["dice_mean"] > 0 and found["bcp"]["dice_mean"] > 0
    [message] = [text for text in told.messages if text.startswith("mcnet: not compared: ")]
    # before the federation has trained anything
    assert told.messages.index(message) == 0
    assert not (tmp_path / "compare" / "mcnet").exists()


def test_a_method_that_needs_sentences_where_no_site_has_any_says_so_and_the_others_go_on(fake, quiet, tmp_path):
    mute = [{**hospital, "text_missing": 1.0} for hospital in HOSPITALS]
    found = results_of(tmp_path, make_study(mute, method={"preset": "supervised"}), quiet, "dusss,mean_teacher")
    assert "no site can take part in the pretrain phase" in found["dusss"]["reason"]
    assert "alder: the site has no sentences" in found["dusss"]["reason"]
    assert found["mean_teacher"]["dice_mean"] > 0


def with_limits(tmp_path, quiet, **sections):
    """Site files of a simulation with more in them."""
    simulate(make_study(method={"preset": "supervised"}), tmp_path / "made", reporter=quiet)
    files = sorted((tmp_path / "made" / "sites").glob("*/site.yaml"))
    for file in files:
        values = yaml.safe_load(file.read_text())
        for section, given in sections.items():
            values[section] = {**values.get(section, {}), **given}
        file.write_text(yaml.safe_dump(values))
    return files


def test_a_method_that_every_site_forbids_says_so_and_the_others_go_on(fake, quiet, tmp_path):
    files = with_limits(tmp_path, quiet, limits={"objectives": ["dusss", "bcp"]})
    study = make_study(method={"preset": "supervised"})
    found = results_of(tmp_path / "run", study, quiet, "mcnet,bcp", site_files=files)
    assert "this site takes no part in studies of objective mcnet (limits.objectives)" in found["mcnet"]["reason"]
    assert found["bcp"]["dice_mean"] > 0


def test_private_sites_train_no_second_method(fake, quiet, tmp_path):
    files = with_limits(tmp_path, quiet, privacy={"epsilon": 8.0, "records": 16})
    for method in ("local", "bcp", "mean_teacher"):
        reason = why_not(method, make_study(), files)
        assert reason.startswith("alder, birch: with differential privacy") and "a second time" in reason


@pytest.mark.parametrize(("method", "own"), [({}, "dusss"), ({"preset": "supervised"}, "supervised")])
def test_the_studys_own_method_is_not_trained_a_second_time(fake, quiet, tmp_path, method, own):
    found = results_of(tmp_path, make_study(method=method), quiet, f"{own},local")
    assert found[own] == {"reason": "it is the study's own method, trained already"}
    assert not (tmp_path / "compare" / own).exists() and found["local"]["dice_mean"] > 0


def test_a_verdict_counts_the_patients_of_the_test_pictures(fake, quiet, tmp_path):
    summary = simulate(make_study(), tmp_path, reporter=quiet, compare_with="local")
    patients = set()
    for name in ("alder", "birch"):
        with (tmp_path / "sites" / name / "manifest.csv").open() as file:
            patients |= {row["patient"] for row in csv.DictReader(file) if row["split"] == "test" and row["mask"]}
    pictures = sum(site["n_test"] for site in summary["sites"].values())
    assert len(patients) < pictures
    assert f"{pictures} test pictures of {len(patients)} patients" in summary["verdict"]


def test_what_could_not_run_is_tried_again_and_what_did_is_not(fake, quiet, tmp_path, monkeypatch):
    mute = [{**hospital, "text_missing": 1.0} for hospital in HOSPITALS]
    study = make_study(mute, method={"preset": "supervised"})
    first = results_of(tmp_path, study, quiet, "clip,mean_teacher")
    monkeypatch.setattr(fake.Segmenter, "train_round", None)
    again = results_of(tmp_path, study, quiet, "clip,mean_teacher", resume=True)
    assert again == first and "reason" in again["clip"]


def test_a_preset_is_compared_with_its_own_step_1_whatever_the_studys_is():
    study = make_study(method={"pretraining": "mgca"})
    for preset, parts in (("paper", True), ("clip", False)):
        method = with_preset(study, preset).method
        assert method.pretraining == "dusss"
        assert {method.sss, method.dcl, method.ltg} == {parts}
