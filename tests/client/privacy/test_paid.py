"""Where a site asks for differential privacy, nothing leaves but tensors that were paid for before they were made."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from flwr.app import RecordDict
from flwr.common.serde import recorddict_to_proto

from client.answer import answer
from client.door import machine
from client.privacy.ledger import Ledger
from client.privacy.paid import FAILED, LEDGER_IS_WRONG
from client.state.store import SiteState
from client.work.workbench import forget
from dusss_core.errors import NotFinite
from dusss_core.manifest import read_manifest, write_manifest
from dusss_core.phases import Phase
from feddusss import wire
from sites.config import load_site
from tests.client import fake_private
from tests.client.conftest import declined, limit, make_content, tensors_of
from tests.client.fake_private import RECORDS, make_private
from tests.server.conftest import HOSPITALS, make_study
from tests.server.unreliable import coordinate

ROUND = 20
"""Steps of a round at the default settings."""


def ledger_of(site_file) -> Ledger:
    site = load_site(site_file)
    return Ledger(site.state_dir, site.privacy)


def log_of(site_file) -> str:
    return (site_file.parent / "state" / "log.txt").read_text()


def sent(reply) -> bytes:
    return recorddict_to_proto(reply).SerializeToString()


# What leaves.


def test_an_answer_holds_paid_for_tensors_and_two_declared_figures_alone(private, site_file):
    study = make_study().training()
    private.site(site_file)
    for phase in ("pretrain", "segment"):
        reply = answer("train", make_content(phase, study=study), site_file)
        assert list(reply) == ["arrays", "metrics"] and list(reply.array_records) == ["arrays"]
        assert set(tensors_of(reply)) == set(tensors_of(make_content(phase, study=study)))
        charges = {"pretrain": 1, "segment": 2}[phase]
        assert dict(reply.metric_records["metrics"]) == {"num-examples": RECORDS, "ledger-charges": charges}


def test_no_count_and_no_figure_of_validation_or_test_leaves(private, site_file):
    private.site(site_file)
    query = answer("query", make_content(arrays=False), site_file)
    assert dict(query.metric_records["metrics"]) == {"n_records": RECORDS}
    assert set(query.config_records["config"]) == {"site", "release", "role", "vlm"}
    answer("train", make_content(), site_file)
    for what in ("val", "test"):
        reply = answer("evaluate", make_content(what=what, round=2), site_file)
        assert list(reply) == ["metrics"] and dict(reply.metric_records["metrics"]) == {}
    # the hospital itself sees them
    assert '"val.dice"' in log_of(site_file) and '"test.dice"' in log_of(site_file)


def test_a_site_without_a_budget_sends_its_figures_as_before(fake, site_file):
    reply = answer("train", make_content(), site_file)
    assert {"val.dice", "train.loss", "seconds"} <= set(reply.metric_records["metrics"])


def test_the_role_of_a_private_site_follows_from_its_file_alone(private, site_file):
    private.site(site_file)
    limit(site_file, phases=[])
    assert answer("query", make_content(arrays=False), site_file).config_records["config"]["role"] == "evaluate"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("patient_4711.png"),
        NotFinite("patient_4711.png"),
        KeyError("x"),
        RuntimeError("CUDA out of memory"),
        RuntimeError("CUDA error: unspecified launch failure"),
    ],
)
def test_every_error_leaves_as_the_same_sentence(private, site_file, monkeypatch, error):
    def broken(self, round):
        raise error

    private.site(site_file)
    monkeypatch.setattr(machine, "_lost_devices", [])
    monkeypatch.setattr("tests.client.fake_private.PrivateSegmenter.train_round", broken)
    reply = answer("train", make_content(), site_file)
    assert dict(reply.config_records["config"]) == {"declined": FAILED, "abstains": False, "diverged": False}
    assert len(ledger_of(site_file).entries()) == 1  # begun is paid


# What is paid.


def test_the_round_is_paid_for_before_it_begins(private, site_file, monkeypatch):
    private.site(site_file)
    paid = []
    train = fake_private.PrivateSegmenter.train_round

    def watched(self, round):
        paid.append([entry.round for entry in ledger_of(site_file).entries()])
        return train(self, round)

    monkeypatch.setattr(fake_private.PrivateSegmenter, "train_round", watched)
    for round in (1, 2):
        answer("train", make_content(round=round), site_file)
    assert paid == [[1], [1, 2]]


def test_a_ledger_entry_tells_what_was_paid_for(private, site_file):
    private.site(site_file)
    study = make_study(method={"preset": "mean_teacher"}, privacy={"sample_rate": 0.02, "noise_multiplier": 2.0})
    answer("train", make_content(study=study.training(), round=3), site_file)
    (entry,) = ledger_of(site_file).entries()
    assert (entry.study, entry.phase, entry.round, entry.records) == ("tiny", "segment", 3, RECORDS)
    assert (entry.steps, entry.sample_rate, entry.noise_multiplier) == (ROUND, 0.02, 2.0)


def test_a_retried_message_is_served_the_same_bytes_and_costs_nothing(private, site_file):
    private.site(site_file)
    first = answer("train", make_content(), site_file)
    forget()
    assert sent(answer("train", make_content(), site_file)) == sent(first)
    assert len(ledger_of(site_file).entries()) == 1


def test_an_answer_whose_state_could_not_be_kept_is_not_given_again_either(private, site_file, monkeypatch):
    private.site(site_file)
    save = SiteState.save
    monkeypatch.setattr(SiteState, "save", lambda *_: 1 / 0)
    assert declined(answer("train", make_content(), site_file)) == FAILED
    monkeypatch.setattr(SiteState, "save", save)
    assert declined(answer("train", make_content(), site_file)) is None
    assert len(ledger_of(site_file).entries()) == 2


def test_any_other_message_pays_again(private, site_file):
    private.site(site_file, epsilon=50)
    answer("train", make_content(), site_file)
    moved = make_study(method={"preset": "mean_teacher"}, seed=2).training()
    model = {name: tensor + 1 for name, tensor in tensors_of(make_content()).items()}
    others = [
        RecordDict({**make_content(), "arrays": wire.pack(model)}),
        make_content(round=2),
        make_content(run_key="cd" * 16),
        make_content(wire="bfloat16"),
        make_content(study=moved),
    ]
    for number, other in enumerate(others, start=2):
        assert declined(answer("train", other, site_file)) is None
        assert len(ledger_of(site_file).entries()) == number


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x" * 100)])
def test_a_round_whose_answer_was_lost_is_paid_again(private, site_file, damage):
    private.site(site_file)
    answer("train", make_content(), site_file)
    (kept,) = (site_file.parent / "state" / "privacy" / "answers").iterdir()
    damage(kept)
    assert declined(answer("train", make_content(), site_file)) is None
    assert len(ledger_of(site_file).entries()) == 2


def test_only_the_last_answers_are_kept(private, site_file):
    private.site(site_file)
    for round in (1, 2, 3, 4):
        answer("train", make_content(round=round), site_file)
    assert len(list((site_file.parent / "state" / "privacy" / "answers").iterdir())) == 2


def test_a_study_that_takes_turns_with_another_is_served_the_same_bytes_and_costs_nothing(private, site_file):
    private.site(site_file, epsilon=50)
    first = answer("train", make_content(), site_file)
    for round in (1, 2, 3):
        answer("train", make_content(run_key="cd" * 16, round=round), site_file)
    assert sent(answer("train", make_content(), site_file)) == sent(first)
    assert len(ledger_of(site_file).entries()) == 4


def test_runs_without_end_leave_few_answers(private, site_file):
    private.site(site_file, epsilon=50)
    for number in range(6):
        answer("train", make_content(run_key=f"{number:02d}" * 16), site_file)
    assert len(list((site_file.parent / "state" / "privacy" / "answers").iterdir())) == 4


# What is refused.


def test_a_study_that_cannot_be_trained_privately_is_told_why_and_costs_nothing(private, site_file):
    private.site(site_file)
    private.reason = "student.norm: batch mixes records: set student.norm: group"
    reply = answer("train", make_content(), site_file)
    assert "set student.norm: group" in declined(reply) and reply.config_records["config"]["abstains"] is True
    assert not ledger_of(site_file).path.exists()


def test_labels_that_are_drawn_by_rank_are_refused(private, site_file):
    text = site_file.read_text().replace("manifest.csv}", "manifest.csv, label_fraction: 0.5}")
    site_file.write_text(text)
    private.site(site_file)
    assert "data.label_fraction" in declined(answer("train", make_content(), site_file))


def test_a_patient_with_more_pictures_than_declared_is_refused(private, site_file):
    private.site(site_file)
    manifest = site_file.parent / "manifest.csv"
    records = read_manifest(manifest)
    twice = [record.id for record in records if record.split == "train"][:2]
    write_manifest(manifest, [replace(r, patient="p1" if r.id in twice else "") for r in records])
    assert "records_per_patient" in declined(answer("train", make_content(), site_file))
    site_file.write_text(site_file.read_text().replace(f"records: {RECORDS}", "records: 500, records_per_patient: 2"))
    assert declined(answer("train", make_content(), site_file)) is None


def test_a_site_that_was_trained_on_without_privacy_stays_out(private, site_file):
    before = site_file.read_text()
    assert declined(answer("train", make_content("pretrain", study=make_study().training()), site_file)) is None
    private.site(site_file)
    reply = answer("train", make_content(round=1), site_file)
    assert "without differential privacy before" in declined(reply) and "tiny" not in declined(reply)
    # nor after a private round in between
    shutil.rmtree(site_file.parent / "state")
    assert declined(answer("train", make_content(), site_file)) is None
    private_text = site_file.read_text()
    site_file.write_text(before)
    assert declined(answer("train", make_content(round=2), site_file)) is None
    site_file.write_text(private_text)
    assert "without differential privacy before" in declined(answer("train", make_content(round=3), site_file))


@pytest.mark.parametrize("left", ["state of the run", "audit log"])
def test_what_an_earlier_release_trained_without_privacy_is_found(private, site_file, left):
    answer("train", make_content(), site_file)
    state = site_file.parent / "state"
    (state / "trained_without_privacy.json").unlink()
    if left == "audit log":
        shutil.rmtree(state / "studies")
    else:
        for log in state.glob("audit.*"):
            log.unlink()
    private.site(site_file)
    assert "without differential privacy before" in declined(answer("train", make_content(round=2), site_file))


def test_a_ledger_that_is_gone_stops_the_site_and_its_own_log_names_file_and_remedy(private, site_file):
    private.site(site_file)
    answer("train", make_content(), site_file)
    ledger_of(site_file).path.unlink()
    assert declined(answer("train", make_content(round=2), site_file)) == LEDGER_IS_WRONG
    assert "privacy/ledger.json: missing" in log_of(site_file) and "backup" in log_of(site_file)


# A study.


def lines_of(out):
    return [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]


def site_of(out, name):
    return out / "sites" / name / "site.yaml"


def test_a_site_whose_budget_is_spent_drops_out_and_the_study_goes_on(private, tmp_path):
    def prepare(grid):
        make_private(site_of(tmp_path, "birch"), epsilon=3.2)

    study = make_study(method={"preset": "mean_teacher"}, segment__rounds=5)
    _, told = coordinate(study, tmp_path, prepare=prepare)
    accepted = [(line["round"], line["accepted"]) for line in lines_of(tmp_path) if line["site"] == "birch"]
    ledger = ledger_of(site_of(tmp_path, "birch"))
    paid = len(ledger.entries())
    assert paid == 2
    assert accepted == [(round, True) for round in range(1, paid + 1)] + [(paid + 1, False)]
    (reason,) = [reason for site, reason in told.refused if site == "birch"]
    assert "of 3.2 is spent at delta 1e-05" in reason and "is left" in reason
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rounds"]["segment"]["trained"] == 5 and summary["sites"]["alder"]["dice"] is not None


def test_the_coordinator_copes_with_sites_that_send_no_figure_at_all(private, tmp_path):
    def prepare(grid):
        for hospital in HOSPITALS:
            make_private(site_of(tmp_path, hospital["name"]))

    coordinate(make_study(segment__rounds=3), tmp_path, prepare=prepare)
    summary = json.loads((tmp_path / "summary.json").read_text())
    # without a validation figure the last round's model is final
    assert summary["rounds"]["segment"] == {"trained": 3, "final": 3, "ended": "all rounds done"}
    assert summary["sites"]["alder"] == {
        "n_records": RECORDS,
        "n_labeled": None,
        "n_unlabeled": None,
        "n_test": None,
        "dice": None,
        "iou": None,
        "hd95": None,
    }
    assert summary["global"]["dice_mean"] is None
    last = max(line["ledger-charges"] for line in lines_of(tmp_path) if line["site"] == "alder")
    assert last == len(ledger_of(site_of(tmp_path, "alder")).entries()) == 5

    from server.report.page import write_report

    write_report(tmp_path)
    assert "alder" in (tmp_path / "report.html").read_text()


def test_a_whole_disk_that_was_set_back_is_found_by_what_the_coordinator_has_seen(private, tmp_path):
    state, copy = tmp_path / "sites" / "birch" / "state", tmp_path / "copy"

    def meddle(site, kind, round, reply):
        if (site, kind, round) == ("birch", "train", 1):
            shutil.copytree(state, copy)
        if (site, kind, round) == ("birch", "train", 2):
            shutil.rmtree(state)
            shutil.copytree(copy, state)
        return reply

    study = make_study(method={"preset": "mean_teacher"}, segment__rounds=3)
    _, told = coordinate(study, tmp_path, meddle, lambda grid: make_private(site_of(tmp_path, "birch")))
    assert told.refused == [("birch", LEDGER_IS_WRONG)]
    assert "the coordinator has seen 2" in log_of(site_of(tmp_path, "birch"))


def test_what_the_coordinator_has_seen_outlives_its_process(private, tmp_path):
    from server.rounds.charges import Charges
    from server.runs.runfolder import LEDGERS, open_run

    study = make_study(method={"preset": "mean_teacher"})
    coordinate(study, tmp_path, prepare=lambda grid: make_private(site_of(tmp_path, "birch")))
    run = open_run(tmp_path, study, resume=True)
    assert run.charges() == {"birch": 2}
    # a resumed run drops lines of rounds without a checkpoint, and may end before the site answers again
    run.outputs.drop_after("pretrain", 0)
    assert run.charges() == {} and Charges(run.folder / LEDGERS, run.charges()).seen("birch") == {"charges": 2}


# The true method.


def test_the_true_trainers_answer_with_tensors_that_were_paid_for(site_file):
    mechanism = pytest.importorskip("dusss_core.privacy.mechanism")
    from dusss_core.training import initial_shared
    from feddusss import wire

    settings = {"steps_per_round": 2, "sample_rate": 0.1, "noise_multiplier": 2.0}
    study = make_study(method={"preset": "mean_teacher"}, student={"width": 4, "norm": "group"}, privacy=settings)
    training = study.training()
    make_private(site_file)
    content = make_content(study=training, arrays=False)
    content["arrays"] = wire.pack(initial_shared(training, Phase.SEGMENT))
    reply = answer("train", content, site_file)
    assert declined(reply) is None, log_of(site_file)
    assert dict(reply.metric_records["metrics"]) == {"num-examples": RECORDS, "ledger-charges": 1}
    assert set(tensors_of(reply)) == set(initial_shared(training, Phase.SEGMENT))
    (entry,) = ledger_of(site_file).entries()
    assert entry.charge == mechanism.charge_of(training, Phase.SEGMENT)
    # the default student mixes the records of a batch: told with the remedy, and not charged
    mixed = make_study(method={"preset": "mean_teacher"}).training()
    assert "student.norm: group" in declined(answer("train", make_content(study=mixed), site_file))
    assert len(ledger_of(site_file).entries()) == 1


def test_the_true_pretrainer_answers_with_tensors_that_were_paid_for(site_file):
    mechanism = pytest.importorskip("dusss_core.privacy.mechanism")
    from dusss_core.training import initial_shared
    from feddusss import wire

    settings = {"steps_per_round": 2, "sample_rate": 0.1, "noise_multiplier": 2.0}
    training = make_study(student={"width": 4, "norm": "group"}, privacy=settings).training()
    make_private(site_file)
    content = make_content("pretrain", study=training, arrays=False)
    before = initial_shared(training, Phase.PRETRAIN)
    content["arrays"] = wire.pack(before)
    reply = answer("train", content, site_file)
    assert declined(reply) is None, log_of(site_file)
    assert dict(reply.metric_records["metrics"]) == {"num-examples": RECORDS, "ledger-charges": 1}
    after = tensors_of(reply)
    assert set(after) == set(before)
    # everything that is trained is noised; statistics of normalisation layers come back as they came
    for name, tensor in after.items():
        assert tensor.equal(before[name]) == ("running_" in name or "num_batches" in name), name
    (entry,) = ledger_of(site_file).entries()
    assert entry.charge == mechanism.charge_of(training, Phase.PRETRAIN)
    assert sent(answer("train", content, site_file)) == sent(reply)  # the same message costs nothing more
    assert len(ledger_of(site_file).entries()) == 1
    # with groups the sensitivity is twice as large; too few declared records for them is told, and not charged
    grouped = make_study(student={"width": 4, "norm": "group"}, privacy={**settings, "pretrain": "groups"}).training()
    assert "it needs 1000" in declined(answer("train", make_content("pretrain", study=grouped), site_file))
    assert len(ledger_of(site_file).entries()) == 1
