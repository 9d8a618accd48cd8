"""The whole line over a stand-in for the method: phases, files of a run, refusals, limits."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dusss_core.errors import UserError
from dusss_core.files import exclusive, read_tensors, write_text
from dusss_core.phases import Phase
from feddusss import configfile
from server.__main__ import main
from server.deployment.control import FlowerRun
from server.deployment.watching import state_of_run
from server.rounds.coordinator import RoundFailed
from server.rounds.enough import check_enough
from server.rounds.replies import LOST, Reply
from server.runs.events import PlainReporter, Reporter
from server.runs.runfolder import open_run
from server.simulation.simulate import evaluate, simulate
from tests.server.conftest import HOSPITALS, finals, make_study


def lines_of(out):
    return [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]


def test_both_phases_run_and_leave_the_files_of_a_run(fake, quiet, tmp_path):
    summary = simulate(make_study(), tmp_path, reporter=quiet)
    assert set(summary["sites"]) == {"alder", "birch"}
    assert summary["sites"]["alder"]["n_labeled"] == 8 and summary["sites"]["alder"]["n_unlabeled"] == 8
    for name in ("config.yaml", "run.json", "summary.json", "metrics.jsonl", "log.txt"):
        assert (tmp_path / name).is_file()
    figures = summary["global"]
    dice = [site["dice"] for site in summary["sites"].values()]
    assert figures["dice_mean"] == pytest.approx(sum(dice) / 2) and figures["dice_worst"] == min(dice)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    _, metadata = read_tensors(tmp_path / "checkpoints" / "student.safetensors")
    assert metadata["phase"] == "segment" and len(metadata["config_digest"]) == 64
    trained = [(line["phase"], line["round"], line["site"]) for line in lines_of(tmp_path) if "train" in line]
    assert trained == [
        (phase, round, site)
        for phase in ("pretrain", "segment")
        for round in (1, 2)
        for site in ("alder", "birch", "*")
    ]


def test_bytes_are_counted_from_the_arrays_and_the_vlm_goes_to_each_site_once(fake, quiet, tmp_path):
    simulate(make_study(segment__rounds=3), tmp_path, reporter=quiet)
    down = {
        (line["phase"], line["round"]): line["bytes_down"]
        for line in lines_of(tmp_path)
        if line["site"] == "alder" and "train" in line
    }
    up = {line["bytes_up"] for line in lines_of(tmp_path) if line["site"] == "alder" and "train" in line}
    assert len(up) == 1
    student = down["segment", 2]
    assert student == down["segment", 3] == down["pretrain", 1]
    assert down["segment", 1] == 2 * student


def test_bytes_over_all_sites_are_told_of_the_last_models_validation_too(fake, quiet, tmp_path):
    simulate(make_study(), tmp_path, reporter=quiet)
    rounds = {}
    for line in lines_of(tmp_path):
        rounds.setdefault((line["phase"], line["round"]), {})[line["site"]] = line
    assert {round for _, round in rounds} == {1, 2, 3}
    for sites in rounds.values():
        whole = sites.pop("*")
        for way in ("bytes_up", "bytes_down"):
            assert whole[way] == sum(line[way] for line in sites.values())
        assert whole["bytes_down"] > 0
    down = sum(line["bytes_down"] for sites in rounds.values() for line in sites.values())
    run = FlowerRun(1, "finished", "completed", "", tmp_path, "2026-01-01T10:00:00+00:00")
    assert state_of_run(run)["bytes_down"] == down


def test_without_text_masks_there_is_no_pretraining(fake, quiet, tmp_path):
    summary = simulate(make_study(method={"preset": "mean_teacher"}), tmp_path, reporter=quiet)
    assert next(iter(summary["seconds"])) == "segment"
    assert not (tmp_path / "checkpoints" / "vlm.safetensors").exists()


def test_only_the_last_rounds_the_best_and_the_final_model_are_kept(fake, quiet, tmp_path):
    study = make_study(study="falling", segment__rounds=6, federation={"keep_checkpoints": 2})
    simulate(study, tmp_path, reporter=quiet)
    rounds = sorted(path.stem for path in (tmp_path / "checkpoints").glob("segment-*"))
    assert rounds == ["segment-0001", "segment-0005", "segment-0006"]


def test_the_best_rounds_model_is_final_and_patience_ends_a_phase(fake, quiet, tmp_path):
    # Dice falls from round to round: the first round's model is best
    study = make_study(study="falling", segment__rounds=9, segment__patience=2)
    summary = simulate(study, tmp_path, reporter=quiet)
    assert summary["rounds"]["segment"]["final"] == 1
    assert summary["rounds"]["segment"]["trained"] == 4  # round 4 brings the figures of round 3's model
    assert "patience" in summary["rounds"]["segment"]["ended"]
    last = make_study(study="falling", segment__rounds=3, federation={"select": "last"})
    assert simulate(last, tmp_path / "last", reporter=quiet)["rounds"]["segment"]["final"] == 3


def test_a_site_without_text_leaves_out_pretraining_and_trains_the_student(fake, quiet, tmp_path):
    silent = [HOSPITALS[0], {**HOSPITALS[1], "text_missing": 1.0}]
    simulate(make_study(silent), tmp_path, reporter=quiet)
    accepted = {
        (line["phase"], line["site"]): line["accepted"]
        for line in lines_of(tmp_path)
        if line["site"] != "*" and line["round"] == 1
    }
    assert accepted["pretrain", "birch"] is False
    assert accepted["segment", "birch"] is True


def test_no_site_with_text_is_told_with_a_remedy(fake, quiet, tmp_path):
    silent = [{**hospital, "text_missing": 1.0} for hospital in HOSPITALS]
    with pytest.raises(UserError, match=r"method\.text_mask: false"):
        simulate(make_study(silent), tmp_path, reporter=quiet)


def test_too_few_sites_with_text_are_told_with_what_mends_it_and_not_to_try_again(fake, quiet, tmp_path):
    silent = [HOSPITALS[0], {**HOSPITALS[1], "text_missing": 1.0}]
    study = make_study(silent, federation={"min_sites": 2})
    with pytest.raises(UserError) as told:
        simulate(study, tmp_path, reporter=quiet)
    assert re.search(r"1 of 2 sites can take part, 2 needed[^>]*birch: the site has no sentences", told.value.problem)
    assert "what is missing" in told.value.remedy and "federation.min_sites (now 2) to 1" in told.value.remedy
    lower = make_study(silent, federation={"min_sites": 1})
    assert simulate(lower, tmp_path, reporter=quiet, resume=True)["rounds"]["pretrain"]["trained"] == 2


def test_a_strategy_that_needs_more_sites_is_not_told_to_lower_min_sites(fake, quiet, tmp_path):
    sites = [{**HOSPITALS[0], "name": f"s{i}", "text_missing": float(i == 2)} for i in range(3)]
    study = make_study(sites, federation={"strategy": "fedmedian"})
    with pytest.raises(UserError, match="2 of 3 sites can take part, 3 needed") as told:
        simulate(study, tmp_path, reporter=quiet)
    assert "min_sites" not in told.value.remedy


def test_a_site_that_is_away_may_come_back_so_the_round_can_be_tried_again():
    nothing = SimpleNamespace(checkpoints=SimpleNamespace(rounds=lambda phase: []))
    alder, birch = (SimpleNamespace(name=name) for name in ("alder", "birch"))
    roster = SimpleNamespace(training=lambda: [birch], away=lambda: [alder])
    replies = {"alder": Reply("alder", "not connected", kind=LOST), "birch": Reply("birch", "no text", abstains=True)}

    def tried_again(study):
        check_enough(study, nothing, roster, Phase.PRETRAIN, 1, replies, {"birch": "no text"})

    with pytest.raises(RoundFailed):
        tried_again(make_study(federation={"min_sites": 1}))
    with pytest.raises(UserError, match="1 of 2 sites can take part"):
        tried_again(make_study(federation={"min_sites": 2}))


def test_a_site_without_training_pictures_is_an_external_test(fake, quiet, tmp_path):
    only_test = [*HOSPITALS, {"name": "cedar", "train": 0, "val": 0, "test": 5}]
    summary = simulate(make_study(only_test), tmp_path, reporter=PlainReporter(heard := io.StringIO()))
    assert set(summary["sites"]) == {"alder", "birch"}
    assert summary["external_test"]["cedar"]["n_test"] == 5
    told = heard.getvalue()
    assert "test cedar: Dice" in told and "tested alone, so in neither mean nor worst: cedar\n" in told
    assert {line["site"] for line in lines_of(tmp_path)} == {"alder", "birch", "*"}


def test_a_site_without_test_pictures_has_no_figures_and_does_not_count(fake, quiet, tmp_path):
    untested = [HOSPITALS[0], {**HOSPITALS[1], "test": 0}]
    summary = simulate(make_study(untested), tmp_path, reporter=quiet)
    assert summary["sites"]["birch"]["dice"] is None
    assert summary["global"]["dice_mean"] == summary["sites"]["alder"]["dice"]


def test_normalisation_layers_stay_at_the_site_under_fedbn(fake, quiet, tmp_path):
    summary = simulate(make_study(local_norm=True), tmp_path, reporter=quiet)
    model, _ = read_tensors(tmp_path / "checkpoints" / "student.safetensors")
    assert not [name for name in model if "norm" in name]
    states = [
        read_tensors(next((tmp_path / "sites" / site / "state").rglob("segment-local-000002.safetensors")))[0]
        for site in ("alder", "birch")
    ]
    assert not torch.equal(states[0]["norm.running_mean"], states[1]["norm.running_mean"])
    assert summary["global"]["dice_mean"] is not None


def test_a_final_model_of_an_earlier_round_is_tested_with_the_local_layers_of_that_round(
    fake, quiet, tmp_path, monkeypatch
):
    tested = []
    score = fake.evaluate_student
    monkeypatch.setattr(
        "dusss_core.training.evaluate_student",
        lambda config, tensors, *rest, **how: tested.append(tensors) or score(config, tensors, *rest, **how),
    )
    # Dice falls from round to round: the first round's model is final, and the layers have moved on since
    summary = simulate(make_study(study="falling", local_norm=True, segment__rounds=4), tmp_path, reporter=quiet)
    assert summary["rounds"]["segment"]["final"] == 1
    means = [model["norm.running_mean"] for model in tested if "norm.running_mean" in model]
    for site in ("alder", "birch"):
        state = tmp_path / "sites" / site / "state"
        first, last = (
            read_tensors(next(state.rglob(f"segment-local-00000{round}.safetensors")))[0]["norm.running_mean"]
            for round in (1, 4)
        )
        assert any(torch.equal(mean, first) for mean in means)
        assert not torch.equal(first, last)
    assert len(means) >= 2


def test_all_sites_failing_ends_the_round_with_each_sites_reason(fake, quiet, tmp_path):
    with pytest.raises(RoundFailed) as failed:
        simulate(make_study(study="broken"), tmp_path, reporter=quiet)
    assert "alder: RuntimeError" in str(failed.value) and "birch: RuntimeError" in str(failed.value)


def test_a_round_that_fails_says_whether_anything_was_saved(fake, quiet, tmp_path):
    with pytest.raises(RoundFailed, match="no round was saved yet"):
        simulate(make_study(study="broken"), tmp_path / "first", reporter=quiet)
    (tmp_path / "first" / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "first" / "checkpoints" / "pretrain-0001.safetensors").touch()
    run = open_run(tmp_path / "first", make_study(study="broken"), resume=True)
    roster = SimpleNamespace(training=lambda: [], away=lambda: [SimpleNamespace(name="alder")])
    replies = {"alder": Reply("alder", "not connected", kind=LOST)}
    with pytest.raises(RoundFailed, match=r"the checkpoints are intact \(--resume\)"):
        check_enough(make_study(), run, roster, Phase.PRETRAIN, 2, replies, {})


def test_a_disk_that_is_full_at_the_simulated_sites_is_the_users_to_mend(fake, quiet, tmp_path, monkeypatch):
    def full(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if "/state/" in str(path) and path.suffix == ".tmp":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        simulate(make_study(), tmp_path, reporter=quiet)
    assert caught.value.code == "FD602" and "free disk space" in caught.value.remedy


def test_who_interrupts_a_simulation_is_told_how_it_goes_on(fake, tmp_path):
    class Interrupts(Reporter):
        after = 1

        def on_round_end(self, phase, round, metrics, best_round):
            if round == self.after:
                raise KeyboardInterrupt

        def on_round_start(self, phase, round, rounds, sites):
            if self.after == 0:
                raise KeyboardInterrupt

    early, late = Interrupts(), Interrupts()
    early.after = 0
    with pytest.raises(KeyboardInterrupt, match="no round was saved yet; the same command begins anew"):
        simulate(make_study(), tmp_path / "early", reporter=early)
    with pytest.raises(KeyboardInterrupt) as caught:
        simulate(make_study(), tmp_path / "a run", reporter=late)
    command = shlex.split(str(caught.value).partition(": ")[2])
    assert command[:3] == ["python", "-m", "server"]
    assert main(command[3:]) == 0  # it goes on, and ends
    assert (tmp_path / "a run" / "summary.json").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_simulation_that_a_signal_ends_says_how_it_goes_on_with_the_code_of_an_interruption(
    fake, tmp_path, monkeypatch, capsys, number
):
    class Stopped(Reporter):
        def on_round_end(self, *_):
            os.kill(os.getpid(), number)

    # where the command does not look for it, it is lost here, and ends no other test
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        monkeypatch.setattr("server.report.progress.make_reporter", Stopped)
        write_text(tmp_path / "study.yaml", configfile.dump(make_study()))
        command = ["simulate", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "run")]
        assert main(command) == 130
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err.startswith("interrupted: go on after the last round that was saved: python -m")
    last = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["args"]) == ("end", [130, "interrupted"])


def test_a_loss_that_is_not_finite_at_every_site_is_the_users_to_mend(fake, quiet, tmp_path):
    with pytest.raises(
        UserError, match=r"not finite at every site[^>]*alder[^>]*birch[^>]*-> lower pretrain\.optimizer\.lr"
    ):
        simulate(make_study(study="nan"), tmp_path, reporter=quiet)


def test_a_failing_site_is_told_in_full_here_and_kept_out_of_the_answer(fake, tmp_path):
    heard = []

    class Listener(Reporter):
        def on_message(self, text):
            heard.append(text)

        def on_site_refused(self, site, reason):
            answers.append(reason)

    answers = []
    with pytest.raises(RoundFailed) as failed:
        simulate(make_study(study="broken"), tmp_path, reporter=Listener())
    assert any("a picture is damaged" in text for text in heard)
    assert len(answers) == 2 and not any("a picture is damaged" in reason for reason in answers)
    # whoever simulates owns all sites, and is not sent to look for a log
    assert str(failed.value).count("a picture is damaged") == 2
    assert "own log" not in str(failed.value)
    assert "a picture is damaged" in (tmp_path / "sites" / "alder" / "state" / "log.txt").read_text()


def test_a_damaged_manifest_is_told_before_anything_is_trained(fake, quiet, tmp_path):
    study = make_study()
    simulate(study, tmp_path, reporter=quiet)
    manifest = tmp_path / "sites" / "alder" / "manifest.csv"
    rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*rows, rows[1]]) + "\n")
    with pytest.raises(UserError, match="is already in row 2"):
        simulate(study, tmp_path, reporter=quiet, force=True)


@pytest.mark.parametrize("strategy", ["fedadam", "fedmedian", "krum"])
def test_every_strategy_runs_the_line(fake, quiet, tmp_path, strategy):
    sites = [{**HOSPITALS[0], "name": f"s{i}"} for i in range(5)]
    study = make_study(sites, federation={"strategy": strategy, "server_lr": 0.5}, method={"preset": "mean_teacher"})
    assert math.isfinite(simulate(study, tmp_path, reporter=quiet)["global"]["dice_mean"])


@pytest.mark.parametrize(
    ("federation", "numbers"),
    [
        ({"strategy": "krum", "byzantine": 1}, "krum needs at least 5 training sites .* there are 2"),
        ({"strategy": "fedmedian"}, "fedmedian needs at least 3 training sites.* there are 2"),
        ({"strategy": "fedtrimmedavg", "trim": 0.1}, "fedtrimmedavg needs at least 10 training sites .* there are 2"),
        ({"min_sites": 3}, "2 training sites there, at least 3 needed"),
    ],
)
def test_too_few_sites_for_a_strategy_is_told_at_the_start(fake, quiet, tmp_path, federation, numbers):
    with pytest.raises(UserError, match=numbers):
        simulate(make_study(federation=federation), tmp_path, reporter=quiet)
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_sites_that_are_not_there_are_named(fake, quiet, tmp_path):
    with pytest.raises(UserError, match="sites that are not there: cedar"):
        simulate(make_study(federation={"sites": ["alder", "cedar"]}), tmp_path, reporter=quiet)


def test_evaluation_can_be_repeated_from_the_checkpoint(fake, quiet, tmp_path):
    first = simulate(make_study(), tmp_path, reporter=quiet, compare_with="local")
    (tmp_path / "sites" / "alder" / "site.yaml").touch()
    again = evaluate(tmp_path, reporter=quiet)
    assert again["sites"] == first["sites"] and again["global"] == first["global"]
    assert again["compare"] == first["compare"]


def test_evaluating_an_unfinished_run_says_what_to_do(fake, quiet, tmp_path):
    with pytest.raises(RoundFailed):
        simulate(make_study(study="broken"), tmp_path, reporter=quiet)
    with pytest.raises(UserError, match="no final student"):
        evaluate(tmp_path, reporter=quiet)


def test_two_runs_of_a_study_give_the_same_models(fake, quiet, tmp_path):
    for name in ("one", "two"):
        simulate(make_study(), tmp_path / name, reporter=quiet)
    assert finals(tmp_path / "one") == finals(tmp_path / "two")


def test_comparisons_are_added_to_the_summary_and_not_trained_twice(fake, quiet, tmp_path, monkeypatch):
    study = make_study()
    summary = simulate(study, tmp_path, reporter=quiet, compare_with="local,centralized,mean_teacher")
    assert list(summary["compare"]) == ["local", "centralized", "mean_teacher"]
    assert set(summary["compare"]["local"]["sites"]) == {"alder", "birch"}
    monkeypatch.setattr(fake.Segmenter, "train_round", None)
    again = simulate(study, tmp_path, reporter=quiet, resume=True, compare_with="local,centralized,mean_teacher")
    assert again["compare"] == summary["compare"]


def test_an_unknown_comparison_is_refused_with_the_known_ones(fake, quiet, tmp_path):
    with pytest.raises(UserError, match="known methods: local, centralized"):
        simulate(make_study(), tmp_path, reporter=quiet, compare_with="locale")


def test_two_processes_cannot_work_on_one_run(tmp_path, fake):
    with exclusive(tmp_path / ".lock"), pytest.raises(UserError, match="another process is working on this run"):
        simulate(make_study(), tmp_path)
