"""Submits a study to the SuperLink, looks on while it runs, and says how it ended.

The ServerApp works in a process of the SuperLink, so it goes on when whoever looks on leaves. It tells what it does in
events.jsonl of the run's folder, and every display here is a replay of that file.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from dusss_core.config import IMAGENET
from dusss_core.errors import UserError
from dusss_core.files import write_text
from feddusss import cli, configfile
from server.deployment.control import DEFAULT_COORDINATOR, Control, ControlFailed, FlowerRun, SuperLinkAway, connected
from server.deployment.folder import CoordinatorFolder
from server.deployment.registry import load_registry
from server.runs.eventlog import Tail, progress_of, replay
from server.runs.events import Reporter
from server.runs.runfolder import Busy, alone, check_run, open_run, write_partners
from server.study.config import StudyConfig, load_study

_POLL_S = 0.5
_ASK_S = 5.0
"""Between two questions to the SuperLink, whether the run is still there."""
_AWAY_S = 60.0
"""After which a SuperLink that does not answer is given up."""
_FREE_S = 20.0
"""An earlier ServerApp lives on for some seconds after its end, after it was stopped, and after its SuperLink was
killed."""


def run(
    study_file: str,
    overrides: Iterable[str],
    *,
    coordinator: Path,
    out: Path | None,
    resume: bool,
    force: bool,
    without: Iterable[str] = (),
    also: Iterable[str] = (),
    reporter: Reporter,
) -> int:
    """Run a study with the sites that are connected to the SuperLink.

    Args:
        coordinator: the folder that `python -m server provision` made.
        out: folder of the run; None: runs/STUDY.
        resume: go on with the run that is in `out`, if there is one.
        force: delete the run that is in `out`.
        without: sites that take no part any more; their part in the model that there is stays.
        also: sites that join; each needs a kit and a registered key, as every other.

    Returns:
        The exit code: 0 the study is done, 1 it failed, 2 there is something to mend.

    Raises:
        UserError: no SuperLink, not a valid study, a run is in `out` already, ...
        KeyboardInterrupt: whoever looks on leaves; the study goes on.
    """
    study = _with_members(load_study(study_file, overrides), set(without), set(also))
    with connected(coordinator) as control:
        _check_keys(coordinator, also)
        run_id, out = submit(
            control, study, coordinator=coordinator, out=out, resume=resume, force=force, reporter=reporter
        )
        return follow(control, run_id, out, coordinator, reporter)


def submit(
    control: Control,
    study: StudyConfig,
    *,
    coordinator: Path,
    out: Path | None,
    resume: bool,
    force: bool,
    reporter: Reporter,
) -> tuple[int, Path]:
    """Hand a study to the SuperLink; the arguments are those of `run`.

    Returns:
        Flower's number of the run, and its folder.

    Raises:
        UserError: a run is in `out` already, ...
    """
    study = on_any_folder(study)
    out = (out or Path("runs") / study.study).expanduser().absolute()
    _make_way(control, out, coordinator, reporter)
    with alone(out):
        run_key = check_run(out, study, resume=resume, force=force)
        if force:
            open_run(out, study, force=True)
        # what was checked here is what is run there, whatever happens to the study's file meanwhile
        submitted = out / "submitted.yaml"
        write_text(submitted, configfile.dump(study))
        if run_key is None:
            # names the study in `resume_command`, also where the ServerApp ends before it has written it
            write_text(out / "config.yaml", configfile.dump(study))
        write_partners(out, _partners(study, coordinator))
    run_id = control.start({"study": str(submitted), "out": str(out)})
    reporter.on_message(f"run {run_id} was submitted to the SuperLink at {control.address}; files: {out}")
    return run_id, out


def follow(control: Control, run_id: int, out: Path, coordinator: Path, reporter: Reporter) -> int:
    """Show a run until it ends; returns its exit code.

    Raises:
        KeyboardInterrupt: after a line that says how to look on again and how to stop the run.
    """
    try:
        return look_on(control, run_id, out, resume_command(out, coordinator), reporter)
    except KeyboardInterrupt:
        reporter.close()
        reporter.on_message(
            f"the study goes on without this window\n"
            f"  look on again:  {_command('status', out, coordinator, '--follow')}\n"
            f"  stop it:        {_command('stop', out, coordinator)}\n"
            f"  then resume it: {resume_command(out, coordinator)}"
        )
        raise
    finally:
        reporter.close()


def look_on(
    control: Control,
    run_id: int,
    out: Path,
    resume: str,
    reporter: Reporter,
    while_waiting: Callable[[], None] = lambda: None,
) -> int:
    """Show a run until it ends; returns its exit code.

    Args:
        resume: the command that goes on with it, for what is told when it fails.
        while_waiting: called about twice a second.
    """
    tail, ours, asked, away_since = Tail(out), False, 0.0, None
    resume = f"  -> go on after its last round: {resume}"
    while True:
        # asked before the events are read: what the run told before it ended is then in them
        finished = None
        if time.monotonic() - asked >= _ASK_S:
            asked = time.monotonic()
            try:
                finished = run if (run := control.run(run_id)).finished else None
                away_since = None
            except SuperLinkAway:
                away_since = away_since or asked
            except ControlFailed as error:
                return _ended(cli.FAILED, str(error), resume, reporter)
        for event in tail.read():
            if event["event"] == "begin":
                ours = event["args"] == [run_id]
            elif ours and event["event"] == "end":
                return _ended(event["args"][0], event["args"][1], resume, reporter)
            elif ours:
                replay(event, reporter)
        if finished is not None:
            return _ended_without_a_word(finished, resume, reporter)
        if away_since is not None and time.monotonic() - away_since > _AWAY_S:
            reporter.on_message(f"the SuperLink at {control.address} is gone: start it again, then\n{resume}")
            return cli.FAILED
        while_waiting()
        time.sleep(_POLL_S)


def find_run(control: Control, named: str) -> FlowerRun:
    """The run that a person named by Flower's id or by its folder (its last submission).

    Raises:
        UserError: there is none.
    """
    folder = Path(named).expanduser().absolute()
    found = [run for run in control.runs() if str(run.id) == named or run.out == folder]
    if not found:
        raise UserError(
            f"{named}: the SuperLink at {control.address} knows no such run",
            "name a run's id or its folder; python -m server status lists them",
        )
    return found[-1]


def resume_command(out: Path, coordinator: Path) -> str:
    """The command that goes on with the run in `out`. It names the run's own settings, whatever `--set` it had."""
    return _command("run", out / "config.yaml", coordinator, "--out", str(out), "--resume")


def on_any_folder(study: StudyConfig) -> StudyConfig:
    """The same study with absolute paths: the ServerApp starts in another folder."""
    changes = {"data": study.data.model_copy(update={"root": str(Path(study.data.root).expanduser().absolute())})}
    for name, part in (("vlm", study.vlm), ("student", study.student)):
        if part.weights is not None and part.weights != IMAGENET:
            weights = type(part.weights)(Path(part.weights).expanduser().absolute())
            changes[name] = part.model_copy(update={"weights": weights})
    if (folder := study.output.mlflow_folder) is not None:
        absolute = str(Path(folder).expanduser().absolute())
        changes["output"] = study.output.model_copy(update={"mlflow": absolute})
    return study.model_copy(update=changes)


def _check_keys(coordinator: Path, also: Iterable[str]) -> None:
    """A site that joins must be able to: its name goes into the run, and each round waits for it.

    Raises:
        UserError: there is none of that name, or it has no key, or one that was shut out.
    """
    registry = load_registry(CoordinatorFolder(coordinator))
    # a SuperLink that `provision` did not set up has no register
    for name in sorted(also) if registry.sites else ():
        if (site := registry.site(name)).key is None:
            raise UserError(
                f"--also {name}: has no key ({site.status})", f"python -m server register {name} PUBKEY, then again"
            )


def _with_members(study: StudyConfig, without: set[str], also: set[str]) -> StudyConfig:
    """The study with other sites.

    Raises:
        UserError: the study names no sites, a site that is to go is none of them, one that is to come is one already,
            or too few are left.
    """
    if not without and not also:
        return study
    sites = study.federation.sites
    if sites is None:
        raise UserError(
            "--without, --also: federation.sites is null, so whoever is registered takes part",
            "python -m server revoke SITE shuts one out, register lets one in; then resume without these options",
        )
    if unknown := sorted(without - set(sites)):
        raise UserError(f"--without {unknown[0]}: not in federation.sites ({', '.join(sites)})", "check the name")
    if known := sorted(also & set(sites)):
        raise UserError(f"--also {known[0]}: is in federation.sites already", "leave it out")
    left = [site for site in sites if site not in without] + sorted(also)
    if len(left) < study.federation.min_sites:
        raise UserError(
            f"{len(left)} site{'s' * (len(left) != 1)} would be left, and federation.min_sites is "
            f"{study.federation.min_sites}",
            "let another one join with --also, or lower it: --set federation.min_sites=N",
        )
    return study.model_copy(update={"federation": study.federation.model_copy(update={"sites": left})})


def _partners(study: StudyConfig, coordinator: Path) -> dict[str, str]:
    """The hospitals that may take part, and the fingerprints of their keys."""
    keys = {site.name: site.key for site in load_registry(CoordinatorFolder(coordinator)).sites}
    names = study.federation.sites or [name for name, key in keys.items() if key is not None]
    return {name: key.fingerprint if (key := keys.get(name)) else "" for name in sorted(names)}


def _command(name: str, path: Path, coordinator: Path, *options: str) -> str:
    elsewhere = () if coordinator == DEFAULT_COORDINATOR else ("--coordinator", str(coordinator))
    return shlex.join(["python", "-m", "server", name, str(path), *options, *elsewhere])


def _ended(code: int, text: str, resume: str, reporter: Reporter) -> int:
    if code == cli.USER_MUST_MEND:
        reporter.on_message(f"error: {text}")
    elif code != cli.OK:
        reporter.on_message(f"failed: {text}\n{resume}")
    return code


def _ended_without_a_word(run: FlowerRun, resume: str, reporter: Reporter) -> int:
    """The ServerApp was stopped, was killed, or never began."""
    told = run.details or "its process ended without a word"
    what = "was stopped" if run.outcome == "stopped" else f"{run.outcome}: {told}"
    reporter.on_message(f"run {run.id} {what}\n{resume}")
    # a person stopped it, or has resumed it elsewhere: a service that began it anew would undo that
    # on a full disk events.jsonl cannot tell the end; Flower keeps the text, and a remedy marks what is to be mended
    return cli.USER_MUST_MEND if run.outcome == "stopped" or "\n  -> " in run.details else cli.FAILED


def _make_way(control: Control, out: Path, coordinator: Path, reporter: Reporter) -> None:
    """See to it that no other ServerApp works on `out`: one that died is put away, one that lives is left alone.

    Raises:
        UserError: a ServerApp works on it.
    """
    earlier = [run for run in control.runs() if run.out == out]
    if not _is_free(out) and earlier:
        reporter.on_message(f"a process still works on {out}: waiting for its end, {_FREE_S:.0f} s at most")
    if not _is_free(out, _FREE_S if earlier else 0.0):
        raise UserError(
            f"{out}: a study is running there",
            f"look on: {_command('status', out, coordinator, '--follow')}; or stop it: "
            f"{_command('stop', out, coordinator)}; if it or its SuperLink has just been stopped, try again soon",
        )
    for run in earlier:
        try:
            if run.finished or _hears_of_its_end(control, run):
                continue
            control.stop(run.id)
            reporter.on_message(f"run {run.id} had died without the SuperLink's knowing; it is put away")
        except ControlFailed:
            pass  # it has found out by itself meanwhile


def _is_free(out: Path, wait_s: float = 0.0) -> bool:
    """Whether no process works on `out`, at the latest after `wait_s` seconds."""
    try:
        with alone(out, wait_s):
            return True
    except Busy:
        return False


def _hears_of_its_end(control: Control, run: FlowerRun) -> bool:
    """A ServerApp that told its end has not died: the SuperLink hears of it some seconds after whoever looked on."""
    if progress_of(run.out, run.id).code is None:
        return False
    give_up = time.monotonic() + _FREE_S
    while not control.run(run.id).finished:
        if time.monotonic() >= give_up:
            return False
        time.sleep(_POLL_S)
    return True
