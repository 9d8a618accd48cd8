"""The folder of a run: opened fresh or to be resumed; its settings, its log, its metrics.

config.yaml      fully resolved settings        run.json     the run's key
metrics.jsonl    a line per round and site      log.txt      what happened
events.jsonl     see server/runs/eventlog.py      partners.json the hospitals and their keys
audit_heads.jsonl see server/rounds/heads.py     ledger_charges.json see server/rounds/charges.py
checkpoints/     see server/runs/checkpoints.py      summary.json final figures
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dusss_core.errors import DISK, UserError
from dusss_core.files import LOOKED_AT_S, clear_unfinished, exclusive, write_json, write_text
from dusss_core.phases import Phase
from feddusss import __version__, configfile
from server.runs.checkpoints import CheckpointStore
from server.runs.lines import metrics_lines
from server.runs.outputs import Files, Outputs
from server.runs.outputs import check as check_outputs
from server.runs.students import STUDENT, STUDENTS, VLM
from server.study.config import StudyConfig, changed_keys, study_digest

HEADS = "audit_heads.jsonl"
LEDGERS = "ledger_charges.json"
CHARGES = "ledger-charges"
"""Figure of a site that trains with differential privacy: how many charges its privacy ledger holds."""
PARTNERS = "partners.json"
log = logging.getLogger("feddusss.coordinator")


class Busy(UserError):
    """Another process works on the run."""

    code = "FD603"


class RunFolder:
    """One run on disk. Make it with `open_run`."""

    def __init__(self, folder: Path, study: StudyConfig, run_key: str, resumed: bool):
        self.folder = folder
        self.run_key = run_key
        self.resumed = resumed
        self.digest = study_digest(study)
        self.checkpoints = CheckpointStore(folder / "checkpoints", run_key, self.digest)
        self.outputs = Outputs(Files(folder), log.warning)
        """Where its figures go."""
        self._study = study

    @property
    def summary_path(self) -> Path:
        return self.folder / "summary.json"

    def summary(self) -> dict[str, Any] | None:
        """The final figures, if the run is finished."""
        try:
            return json.loads(self.summary_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:
            raise UserError(
                f"{self.summary_path}: not JSON", "delete it, then write it again with: python -m server evaluate RUN"
            ) from None

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, in order; none before the first round is over."""
        path = self.folder / "metrics.jsonl"
        return [line for _, line in metrics_lines(path)] if path.is_file() else []

    def last_sites(self) -> list[str]:
        """Sites whose answers were accepted in the last round in metrics.jsonl."""
        lines = [line for line in self.metrics() if "train" in line]
        last = lines[-1] if lines else {}
        rounds = [line for line in lines if (line["phase"], line["round"]) == (last["phase"], last["round"])]
        return sorted(line["site"] for line in rounds if line.get("accepted"))

    def partners(self) -> dict[str, str]:
        """Each hospital and the fingerprint of its key, as `write_partners` left them; empty without a deployment.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / PARTNERS
        try:
            return {str(name): str(key) for name, key in json.loads(path.read_text(encoding="utf-8")).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: cannot be read: {error}", "resume the run: it is written again") from None

    def note_members(self, study: StudyConfig) -> None:
        """Write into run.json which sites may take part from now on, and by which release, where that has changed."""
        path = self.folder / "run.json"
        about = _about(self.folder)
        now = {"sites": study.federation.sites, "release": __version__}
        known = about.get("members", [])
        if not known or {key: known[-1].get(key) for key in now} != now:
            since = datetime.now(UTC).isoformat(timespec="seconds")
            write_json(path, {**about, "members": [*known, {"since": since, **now}]})

    def members(self) -> list[dict[str, Any]]:
        """What `note_members` has written, oldest first."""
        return _about(self.folder).get("members", [])

    def accepted(self, phase: Phase, round: int) -> dict[str, dict[str, Any]]:
        """The lines of a round's accepted answers in metrics.jsonl, by site; of a round done twice the later ones."""
        path = self.folder / "metrics.jsonl"
        lines = [line for _, line in metrics_lines(path) if "train" in line] if path.is_file() else []
        lines = [line for line in lines if (line["phase"], line["round"]) == (phase, round)]
        return {line["site"]: line for line in lines if line.get("accepted")}

    def charges(self) -> dict[str, int]:
        """The largest number of charges that each site's privacy ledger has told of, as far as metrics.jsonl knows."""
        seen: dict[str, int] = {}
        for line in self.metrics():
            if CHARGES in line:
                seen[line["site"]] = max(seen.get(line["site"], 0), int(line[CHARGES]))
        return seen

    @contextmanager
    def recording(self, tell: Callable[[str], None] = log.warning) -> Iterator[None]:
        """Have the coordinator's log written to log.txt, and figures to wherever the study asks, while the block runs.

        Args:
            tell: told where an output is given up.

        Raises:
            UserError: an output cannot be written to.
        """
        self.outputs.tell = tell
        with self.logging(), closing(self.outputs):
            self.outputs.open(self._study, self.folder, self.run_key)
            yield

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Have the coordinator's log written to log.txt while the block runs."""
        handler = logging.FileHandler(self.folder / "log.txt", encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handler.handleError = lambda record: None  # a full disk is told where a file matters
        log.addHandler(handler)
        level, propagate = log.level, log.propagate
        log.setLevel(logging.INFO)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(handler)
            handler.close()
            log.setLevel(level)
            log.propagate = propagate


def open_run(folder: Path, study: StudyConfig, *, resume: bool = False, force: bool = False) -> RunFolder:
    """Open a folder for a study.

    Args:
        resume: go on with the run that is there, if there is one.
        force: delete the run that is there (its sites' data and state stay).

    Raises:
        UserError: a run is there and neither is given; or it has other settings (the keys are named); or it lacks what
            it could go on with, and is not deleted without `force`.
    """
    folder = Path(folder).absolute()
    run_key = check_run(folder, study, resume=resume, force=force)
    clear_unfinished(folder / "checkpoints")
    run = RunFolder(folder, study, run_key or _start(folder, study), resumed=run_key is not None)
    run.note_members(study)
    write_text(folder / "config.yaml", configfile.dump(study))
    return run


def check_run(folder: Path, study: StudyConfig, *, resume: bool = False, force: bool = False) -> str | None:
    """What `open_run` would do, without doing it: the key of the run that it would resume, None for a fresh start.

    Raises:
        UserError: as `open_run`.
    """
    check_outputs(study)
    if force:
        return None
    saved = any((folder / "checkpoints").glob("*.safetensors"))
    _check_whole(folder, saved)
    if not (folder / "run.json").is_file():
        return None
    if not saved:
        _check_begins_anew(folder, study)
        return None
    if not resume:
        raise UserError(
            f"{folder}: holds a run already", "go on with it: --resume; or delete it: --force; or choose another --out"
        )
    before, run_key = read_study(folder)
    _check_unchanged(folder, before, study)
    CheckpointStore(folder / "checkpoints", run_key, study_digest(study)).check()
    return run_key


@contextmanager
def alone(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """No other process works on the run in `folder` meanwhile.

    Raises:
        Busy: another one still does after `wait_s` seconds.
        UserError: the folder cannot be made, or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: could not be made: {error.strerror or error}", "choose another --out", DISK
        ) from None
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder / ".lock", max(wait_s, LOOKED_AT_S)))
        except BlockingIOError:
            raise Busy(
                f"{folder}: another process is working on this run", "wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written to: {error.strerror or error}",
                "mend its permissions, run this as the account that owns it, or choose another --out",
                DISK,
            ) from None
        yield


def read_study(folder: Path) -> tuple[StudyConfig, str]:
    """The settings and the key of the run in `folder`.

    Raises:
        UserError: it holds no run.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file() or not (folder / "run.json").is_file():
        raise UserError(f"{folder}: not a folder of a run", "name the folder that was given to --out")
    study = configfile.load(StudyConfig, folder / "config.yaml")
    return study, str(_about(folder)["run_key"])


def _about(folder: Path) -> dict[str, Any]:
    """What run.json holds.

    Raises:
        UserError: it cannot be read, or is damaged.
    """
    path = folder / "run.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about["run_key"], str) or not isinstance(about.get("members", []), list):
            raise ValueError("'run_key' is no text, or 'members' no list")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read: {error}",
            "put it back from a backup: without its run_key no checkpoint and no site's state belongs to this run",
        ) from None
    return about


def write_partners(folder: Path, partners: Mapping[str, str]) -> None:
    """Write who takes part, and with which key, for the process that runs the study."""
    write_json(folder / PARTNERS, dict(partners))


def nested(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Metrics under dotted names as a line of metrics.jsonl has them: {"train": {"loss": ...}, "seconds": ...}."""
    line: dict[str, Any] = {}
    for name, value in metrics.items():
        group, dot, rest = name.partition(".")
        if dot:
            line.setdefault(group, {})[rest] = value
        else:
            line[name] = value
    return line


def _start(folder: Path, study: StudyConfig) -> str:
    pages = ("report.html", "look.html")
    files = (
        "run.json",
        "config.yaml",
        "summary.json",
        "metrics.jsonl",
        HEADS,
        LEDGERS,
        "log.txt",
        *pages,
        STUDENT,
        VLM,
    )
    for name in files:
        (folder / name).unlink(missing_ok=True)
    for name in ("checkpoints", "compare", "tensorboard", STUDENTS):
        shutil.rmtree(folder / name, ignore_errors=True)
    run_key = secrets.token_hex(16)
    write_text(folder / "config.yaml", configfile.dump(study))
    write_json(folder / "run.json", {"run_key": run_key})
    return run_key


def _check_whole(folder: Path, saved: bool) -> None:
    """A run that lost what it could go on with is still one: nothing of it is deleted unasked.

    Args:
        saved: whether a checkpoint is there.

    Raises:
        UserError: there are checkpoints or final files, and run.json is not there, or no checkpoint is.
    """
    keyed = (folder / "run.json").is_file()
    finished = any((folder / name).is_file() for name in ("summary.json", STUDENT))
    if (keyed and saved) or not (saved or finished):
        return
    missing = "its checkpoints are" if keyed else "its run.json is"
    raise UserError(
        f"{folder}: holds a run, and {missing} not there",
        "put back what is missing from a backup, then go on with --resume; or choose another --out; or delete what is "
        "left of it: --force",
    )


def _check_begins_anew(folder: Path, study: StudyConfig) -> None:
    """A run that ended before its first round was saved begins anew, but makes no way for another one.

    Raises:
        UserError: the study has other settings.
    """
    try:
        changed = changed_keys(read_study(folder)[0], study)
    except (UserError, ValueError, KeyError):
        changed = ["its settings cannot be read by this release"]
    if changed:
        raise UserError(
            f"{folder}: holds a run with other settings, which ended before its first round was saved: "
            f"{', '.join(changed)}",
            "delete it: --force; or choose another --out",
        )


def _check_unchanged(folder: Path, before: StudyConfig, study: StudyConfig) -> None:
    if changed := changed_keys(before, study):
        raise UserError(
            f"{folder}: its run has other settings: {', '.join(changed)}",
            f"resume it with its own, without --set: give {folder / 'config.yaml'} in place of the study file, and "
            f"--out {folder} --resume; or start afresh with --force or another --out",
        )
    for phase in Phase:
        old, new = phase.settings(before).rounds, phase.settings(study).rounds
        if new < old:
            raise UserError(
                f"{folder}: {phase}.rounds was {old} and is now {new}",
                "rounds may only be extended when a run is resumed",
            )
