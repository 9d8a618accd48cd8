"""Study files: presets by name, unknown keys with the nearest known one, what the sites are sent."""

from __future__ import annotations

import pytest

from dusss_core.errors import UserError
from dusss_core.objectives import TABLE
from dusss_core.phases import Phase
from server.simulation.compare import with_preset
from server.study import config
from server.study.config import StudyConfig, find_study, load_study, study_digest
from tests.dusss_core.objectives.sites import network_for
from tests.server.conftest import make_study


def write(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    return path


def test_a_preset_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_study("demo") == find_study("configs/demo.yaml") == find_study("demo.yaml")
    assert load_study("demo").study == "demo"


def test_an_unknown_preset_names_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"presets: .*demo"):
        find_study("demmo")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("federation: {stategy: fedavg}", r"'federation\.stategy'\n  -> did you mean 'strategy'"),
        ("federation: {strategy: fedsgd}", r"'federation\.strategy'"),
        ("federation: {sites: [a b]}", "sites: 'a b' is no name of a site"),
        ("federation: {sizes: {../a: 3}}", r"sizes: '\.\./a' is no name of a site"),
        ("federation: {sizes: {}}", "sizes: names no site"),
        ("simulation: {dat: {}}", r"'simulation\.dat'\n  -> did you mean 'data'"),
        ("simulation: {data: {kind: synth, synth: {hospital: 3}}}", r"'simulation\.data\.synth\.hospital'"),
        ("simulation: {data: {kind: manifest}}", "needs a path"),
        ("simulation: {data: {kind: synth}, partition: {}}", "hospitals are the sites"),
        ("prox_mu: 0.1", "fedprox"),
        ("method: {objective: mcnett}", r"'method\.objective': 'mcnett' is not known\n  -> did you mean 'mcnet'\?"),
        ("method: {objective: ct}", r"did you mean 'cct'\? known here: dusss, .*bcp"),
        ("method: {pretraining: duss}", r"'method\.pretraining': .*\n  -> did you mean 'dusss'\?"),
        ("student: {network: smal_unet}", r"'student\.network': .*\n  -> did you mean 'small_unet'\?"),
        ("method: {objective: mcnet, text_mask: true}", "objective: mcnet has no text_mask"),
        ("method: {objective: cct, teacher: true}", "objective: cct has no teacher"),
        ("student: {network: small_unet, encoder: test_resnet}", "choose one of the two"),
        ("fixed_statistics: true\nlocal_norm: true", "keeps them at each site: choose one of the two"),
        (
            "{method: {objective: mcnet}, student: {encoder: test_resnet}}",
            r"mcnet does not work on encoder: it needs one of small_unet, unet .*\n?.*on encoder work dusss, "
            "mean_teacher_mse, bcp",
        ),
        (
            "pretrain: {uncertainty: {log_sigma_min: 1, log_sigma_max: -1}}",
            r"'pretrain\.uncertainty': log_sigma_min: 1 is above log_sigma_max: -1",
        ),
        ("vlm: {text: {encoder: ''}}", r"'vlm\.text\.encoder': .*at least 1"),
        ("student: {encoder: ''}", r"'student\.encoder': .*at least 1"),
        ("simulation: {threads: 100000}", r"'simulation\.threads': .*1024"),
        ("personal: dito", r"'personal\.kind': .*\n  -> did you mean 'ditto'\?"),
    ],
)
def test_a_mistake_is_told_with_file_and_key(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as told:
        load_study(path)
    assert str(path) in str(told.value)


def test_a_tilde_is_the_home_folder_in_paths_of_a_study_and_of_set(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data = "simulation: {data: {kind: manifest, path: ~/m.csv}}"
    path = write(tmp_path, data)
    assert load_study(f"~/{path.name}").simulation.data.path == tmp_path / "m.csv"
    assert load_study(path, ["simulation.data.path=~/n.csv"]).simulation.data.path == tmp_path / "n.csv"
    assert load_study(path, ["simulation.data.path=~nobody-here/n.csv"]).simulation.data.path.parts[0][0] == "~"


@pytest.mark.parametrize("name", TABLE)
def test_every_objective_is_a_study_without_pretraining_but_for_the_projects_own(name):
    study = make_study(method={"objective": name}, student={"network": network_for({"objective": name})})
    assert (Phase.PRETRAIN in study.phases()) == (name == "dusss")
    assert StudyConfig.model_validate(study.model_dump()) == study
    assert study.training().method.objective == name


def test_a_preset_of_the_method_is_compared_with_another_objective():
    study = make_study(method={"objective": "mcnet"}, student={"network": "small_unet"})
    for preset in ("supervised", "mean_teacher", "paper"):
        other = with_preset(study, preset)
        assert other.method == make_study(method={"preset": preset}).method
        assert other.student == study.student


def test_set_reaches_every_part(tmp_path):
    path = write(tmp_path, "simulation: {data: {kind: synth}}")
    study = load_study(path, ["data.root=../elsewhere", "simulation.data.synth.hospitals=2", "federation.mu=0.5"])
    assert study.data.root == "../elsewhere" and len(study.simulation.data.synth.hospitals) == 2
    assert study.federation.mu == 0.5


def test_sites_are_sent_no_path_of_the_coordinators_machine_and_nothing_of_the_federation():
    study = make_study(vlm__weights="/home/me/weights.safetensors", student__weights="/home/me/student.safetensors")
    sent = study.training().model_dump_json()
    assert "/home/me" not in sent and "federation" not in sent and "simulation" not in sent and "root" not in sent


def test_fedprox_reaches_the_sites_as_prox_mu():
    assert make_study(federation={"strategy": "fedprox", "mu": 0.3}).training().prox_mu == 0.3
    assert make_study(federation={"mu": 0.3}).training().prox_mu == 0


def test_the_papers_preset_has_nothing_that_is_not_in_the_paper_and_given_keys_win():
    paper = make_study(method={"preset": "paper"})
    own = ("grounding_supervision", "grounding_consistency", "detach_uncertainty")
    assert not any(getattr(paper.method, switch) for switch in own)
    assert paper.method.pairs == "identity"
    assert not (paper.vlm.skips or paper.vlm.cross_attention or paper.vlm.mirror or paper.segment.dice)
    assert paper.vlm.mask_bias == 0 and paper.student.mask_bias is None
    background = make_study(student={"mask_bias": -2.0})
    biases = {name: with_preset(background, name).student.mask_bias for name in ("paper", "supervised")}
    assert biases == {"paper": None, "supervised": -2}
    assert paper.segment.teacher_rampup == 0 and not paper.segment.guided_as_labelled
    assert make_study(method={"preset": "paper", "grounding_supervision": True}).method.grounding_supervision
    assert make_study(method={"preset": "paper"}, segment={"dice": True}).segment.dice


def test_a_resolved_config_reads_back_the_same(tmp_path):
    from feddusss import configfile

    study = make_study(federation={"strategy": "fedprox"}, method={"preset": "paper"})
    path = write(tmp_path, configfile.dump(study))
    assert configfile.load(StudyConfig, path) == study


def test_a_run_on_own_pictures_records_no_synthetic_hospitals(tmp_path):
    from feddusss import configfile

    source = {"kind": "manifest", "path": "m.csv"}
    study = make_study(simulation={"data": source, "partition": {"by": "column", "column": "site"}})
    text = configfile.dump(study)
    assert "synth:" not in text and "m.csv" in text
    assert configfile.load(StudyConfig, write(tmp_path, text)) == study
    assert "synth:" in configfile.dump(make_study())


def test_paths_of_a_study_hold_in_the_coordinators_folder(tmp_path, monkeypatch):
    """The ServerApp starts elsewhere; the name of a release is no path."""
    from server.deployment.run import on_any_folder

    monkeypatch.chdir(tmp_path)
    study = make_study(vlm__weights="a/vlm.safetensors", student__weights="student.safetensors")
    there = on_any_folder(study)
    assert there.vlm.weights == str(tmp_path / "a" / "vlm.safetensors")
    assert there.student.weights == str(tmp_path / "student.safetensors")
    lite = "tf_efficientnet_lite0"
    named = on_any_folder(make_study(student={"encoder": lite, "weights": "imagenet"}, vlm__weights="imagenet"))
    assert (named.vlm.weights, named.student.weights) == ("imagenet", "imagenet")


def test_a_run_of_an_older_release_goes_on_where_no_setting_that_matters_has_changed(monkeypatch):
    class Later(StudyConfig):
        added: int = 3

    before = make_study()
    values = before.model_dump()
    assert study_digest(Later.model_validate(values)) == study_digest(before)
    assert study_digest(Later.model_validate({**values, "added": 4})) != study_digest(before)
    assert study_digest(make_study(seed=5)) != study_digest(before)

    # a default that is another one from now on: a run that had the old one does not notice
    unset = study_digest(before)
    monkeypatch.setitem(config.FORMER_DEFAULTS, "segment.patience", 7)
    assert study_digest(make_study(segment__patience=7)) == unset
    assert study_digest(before) != unset
