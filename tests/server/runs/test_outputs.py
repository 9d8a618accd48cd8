"""The figures of a run in TensorBoard and MLflow, read back with their own readers; and a study that lacks either."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from dusss_core.errors import UserError
from dusss_core.phases import Phase
from server.__main__ import main
from server.runs import outputs
from server.runs.runfolder import open_run
from server.simulation.simulate import simulate
from server.study.config import changed_keys, study_digest
from tests.server.conftest import make_study

pytestmark = pytest.mark.usefixtures("fake")


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard reads in a folder: by tag, the value at each step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: {event.step: event.value for event in reader.Scalars(tag)} for tag in reader.Tags()["scalars"]}


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def line(round: int, dice: float, site: str = "alder") -> dict:
    return {"phase": "segment", "round": round, "site": site, "accepted": True, "val": {"dice": dice}}


def mlflow_runs(folder: Path, study: str = "tiny"):
    """The runs in a folder's mlflow.db, newest first, and the client that read them."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    return client, client.search_runs([client.get_experiment_by_name(study).experiment_id])


def test_tensorboard_reads_every_figure_of_metrics_jsonl_and_of_the_summary(tmp_path, quiet):
    summary = simulate(make_study(output__tensorboard=True), tmp_path, reporter=quiet)
    read = {}
    for entry in lines_of(tmp_path):
        site = "_all" if entry["site"] == "*" else entry["site"]
        folder = tmp_path / "tensorboard" / site / entry["phase"]
        read[folder] = read.get(folder) or scalars(folder)
        figures = {
            f"{group}.{name}": value for group in ("train", "val") for name, value in entry.get(group, {}).items()
        }
        figures |= {name: entry[name] for name in ("bytes_up", "seconds") if name in entry}
        for name, value in figures.items():
            tag = f"{entry['phase']}/{name}"
            assert read[folder][tag][entry["round"]] == pytest.approx(value, rel=1e-6), (folder, tag)
    assert len(read) == 6  # two sites and all of them, two phases
    tested = scalars(tmp_path / "tensorboard" / "alder" / "test")
    assert tested["test/dice"][0] == pytest.approx(summary["sites"]["alder"]["dice"])
    assert scalars(tmp_path / "tensorboard" / "_all" / "test")["test/dice_mean"][0] == pytest.approx(
        summary["global"]["dice_mean"]
    )


def test_a_round_that_is_trained_again_counts_once_in_tensorboard(tmp_path):
    study = make_study(output__tensorboard=True)
    for first, dice in ((1, 0.1), (3, 0.5)):
        run = open_run(tmp_path, study, resume=True)
        with run.recording():
            run.outputs.drop_after(Phase.SEGMENT, first - 1)
            for round in range(first, 5):
                run.outputs.add([line(round, dice)])
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / "segment-0002.safetensors").touch()  # so that it is resumed
        time.sleep(1.1)  # the reader puts files in order by the second
    read = scalars(tmp_path / "tensorboard" / "alder" / "segment")["segment/val.dice"]
    assert read == {step: pytest.approx(0.1 if step < 3 else 0.5) for step in (1, 2, 3, 4)}


def test_mlflow_reads_every_figure_the_settings_and_how_it_ended(tmp_path, quiet):
    study = make_study(output__mlflow=str(tmp_path / "store"))
    summary = simulate(study, tmp_path / "run", reporter=quiet)
    client, (found,) = mlflow_runs(tmp_path / "store")
    for entry in lines_of(tmp_path / "run"):
        key = f"{entry['phase']}/val.dice" + ("" if entry["site"] == "*" else f"/{entry['site']}")
        if "dice" in entry.get("val", {}):
            history = {point.step: point.value for point in client.get_metric_history(found.info.run_id, key)}
            assert history[entry["round"]] == pytest.approx(entry["val"]["dice"])
    assert found.data.metrics["test/dice_mean"] == pytest.approx(summary["global"]["dice_mean"])
    assert found.data.metrics["test/dice/birch"] == pytest.approx(summary["sites"]["birch"]["dice"])
    assert found.data.params["segment.rounds"] == "2" and not any(key.startswith("output") for key in found.data.params)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    # finished once, it stays so
    simulate(study, tmp_path / "run", resume=True, reporter=quiet)
    assert [run.info.status for run in mlflow_runs(tmp_path / "store")[1]] == ["FINISHED"]


def test_a_run_that_breaks_off_has_failed_in_mlflow_and_goes_on_there_when_it_is_resumed(tmp_path):
    study = make_study(output__mlflow=str(tmp_path / "store"))
    run = open_run(tmp_path / "run", study)
    with pytest.raises(KeyboardInterrupt), run.recording():
        run.outputs.add([line(1, 0.1)])
        raise KeyboardInterrupt
    assert mlflow_runs(tmp_path / "store")[1][0].info.status == "FAILED"
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "segment-0001.safetensors").touch()
    run = open_run(tmp_path / "run", study, resume=True)
    with run.recording():
        run.outputs.add([line(2, 0.2)])
        run.outputs.finish({"global": {"dice_mean": 0.3}})
    client, (found,) = mlflow_runs(tmp_path / "store")
    history = client.get_metric_history(found.info.run_id, "segment/val.dice/alder")
    assert [(point.step, point.value) for point in history] == [(1, 0.1), (2, 0.2)]
    assert found.info.status == "FINISHED"


def test_both_are_off_by_default_and_change_no_figure(tmp_path, quiet):
    plain, more = make_study(), make_study(output__tensorboard=True, output__mlflow="store")
    assert study_digest(plain) == study_digest(more) and not changed_keys(plain, more)
    simulate(plain, tmp_path / "plain", reporter=quiet)
    assert not (tmp_path / "plain" / "tensorboard").exists()
    with_it = make_study(output__tensorboard=True)
    simulate(with_it, tmp_path / "more", reporter=quiet)
    timed = ("seconds",)
    kept = [
        [{key: value for key, value in entry.items() if key not in timed} for entry in lines_of(tmp_path / name)]
        for name in ("plain", "more")
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_an_extra_that_is_missing_is_told_with_its_install_line_before_anything_is_made(
    name, tmp_path, monkeypatch, capsys
):
    find_spec = outputs.importlib.util.find_spec
    monkeypatch.setattr(outputs.importlib.util, "find_spec", lambda asked: None if asked == name else find_spec(asked))
    value = "true" if name == "tensorboard" else str(tmp_path / "store")
    assert main(["simulate", "demo", "--out", str(tmp_path / "run"), "--set", f"output.{name}={value}"]) == 2
    told = capsys.readouterr().err
    assert f"output.{name}: {name} is not installed" in told and f"pip install 'feddusss[{name}]'" in told
    assert not (tmp_path / "run" / "sites").exists()


def test_a_tensorboard_folder_that_cannot_be_written_is_told_before_training(tmp_path, quiet):
    (tmp_path / "tensorboard").write_text("a file in its place")
    with pytest.raises(UserError, match=r"tensorboard: could not be written"):
        simulate(make_study(output__tensorboard=True), tmp_path, reporter=quiet)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("store", ["http://127.0.0.1:9", "sqlite:///{}/file/all.db", "{}/file/store"])
def test_an_mlflow_store_that_cannot_be_reached_is_told_before_training(store, tmp_path, quiet, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "file").touch()
    study = make_study(output__mlflow=store.format(tmp_path))
    with pytest.raises(UserError, match=r"output.mlflow: ") as caught:
        simulate(study, tmp_path / "run", reporter=quiet)
    assert "or leave output.mlflow out" in caught.value.remedy
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_output_that_fails_in_between_is_told_once_and_the_study_goes_on(tmp_path, monkeypatch):
    from server.runs.to_tensorboard import TensorBoard

    def full(self, lines):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoard, "add", full)
    run, told = open_run(tmp_path, make_study(output__tensorboard=True)), []
    with run.recording(told.append):
        for round in (1, 2):
            run.outputs.add([line(round, 0.5)])
    (text,) = told
    assert "output.tensorboard: given up" in text and "No space left" in text
    assert [entry["round"] for entry in lines_of(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("ftp://host/x", "a folder, or a URI"),
        ("https://me:secret@host", "MLFLOW_TRACKING_USERNAME"),
        ("https://secret@host", "MLFLOW_TRACKING_USERNAME"),
        ("postgresql://me:secret@host/runs", "PGPASSWORD"),
        (" ", "empty"),
    ],
)
def test_a_store_that_is_none_and_a_password_in_the_study_are_refused(value, word, tmp_path, capsys):
    assert main(["simulate", "demo", "--out", str(tmp_path), "--set", f"output.mlflow='{value}'"]) == 2
    assert word in (told := capsys.readouterr().err) and "secret" not in told
