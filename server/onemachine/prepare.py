"""Everything that the processes need before they start: certificates, synthetic data, keys. Doing it again is safe."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dusss_core.errors import UserError
from dusss_core.files import exclusive, write_json
from server.deployment import registry
from server.deployment.provision import provision
from server.onemachine import system
from server.onemachine.layout import LOCK, STUDY, Layout, shown
from server.runs.runfolder import check_run
from server.study.simulation import SimulationConfig
from sites.synth.hospitals import write_hospitals

NEEDED_MB = 500
"""Free disk: what a run writes, and as much again."""
_MADE = "made.json"
"""In OUT/hospitals: names the data that are there."""


@contextmanager
def opened(layout: Layout, *, resume: bool = False, force: bool = False) -> Iterator[None]:
    """Hold the folder for this process, once nothing stands in the way of a start. Nothing in it is changed before.

    Args:
        resume: the run that is there is gone on with.
        force: all that is there is deleted.

    Raises:
        UserError: disk full; port in use; processes of an earlier start; a run is there, and neither flag is given; the
            folder is another thing's.
    """
    _check_folder(layout.out)
    _check_disk(layout.out)
    with _locked(layout):
        _check_processes(layout)
        _check_port(layout.port)
        check_run(layout.out, layout.study, resume=resume, force=force)
        if force:
            _clear(layout.out)
        yield


def prepare(layout: Layout, say: Callable[[str], None]) -> None:
    """Make, or complete, what the SuperLink and the hospitals need; `opened` must hold.

    Raises:
        UserError: disk full; a file of configs/ does not fit.
    """
    port = f"deployment.superlink_port={layout.port}"
    provision(STUDY, layout.out, [*layout.overrides, port], say, kits=False)
    _write_data(layout, say)
    _make_keys(layout, say)


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{shown(out)}: is no folder", "choose another --out")
    if out.is_dir() and not (out / LOCK).exists() and any(out.iterdir()):
        raise UserError(
            f"{shown(out)}: holds something else than a federation on one machine",
            "move it away, or choose another --out",
        )


def _check_disk(out: Path) -> None:
    there = next(folder for folder in (out, *out.parents) if folder.exists())
    free = shutil.disk_usage(there).free // 10**6
    if free < NEEDED_MB:
        raise UserError(
            f"{shown(out)}: the disk has {free} MB left, and a federation needs {NEEDED_MB} MB",
            "free disk space, or choose another --out",
        )


@contextmanager
def _locked(layout: Layout) -> Iterator[None]:
    try:
        layout.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{shown(layout.out)}: {error.strerror or error}", "choose another --out") from None
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(layout.lock))
        except BlockingIOError:
            pid = system.holder(layout.lock)
            raise UserError(
                f"{shown(layout.out)}: a federation runs there" + (f" (process {pid})" if pid else ""),
                f"wait for its end, or stop it: {f'kill {pid}' if pid else 'Ctrl-C there'}; or start another beside it "
                "with --out and --port",
            ) from None
        yield


def _check_processes(layout: Layout) -> None:
    """Nothing works there: neither what an earlier start left behind, nor what was started by hand."""
    running = system.superlinks_in(layout.coordinator.path) | system.marked(layout.out)
    for site in layout.sites:
        lock = layout.hospital(site) / "state" / "client.lock"
        if lock.exists() and system.is_held(lock):
            pid = system.holder(lock)
            if pid is None:
                raise UserError(f"{site}: python -m client is running for it already", "stop that one first")
            running.setdefault(pid, f"python -m client of {site}")
    if running:
        named = ", ".join(f"{pid} ({name})" for pid, name in sorted(running.items()))
        raise UserError(
            f"{shown(layout.out)}: processes of an earlier start still run: {named}",
            f"stop them, and start again when they have ended: kill {' '.join(map(str, sorted(running)))}",
        )


def _check_port(port: int) -> None:
    if not system.port_is_free(port):
        pid = system.listener(port)
        raise UserError(
            f"port {port} of this machine is in use" + (f" (by process {pid}, {system.name_of(pid)})" if pid else ""),
            "stop what listens there, or choose another port: make federation PORT=N, or --port N",
        )


def _clear(out: Path) -> None:
    for path in out.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _write_data(layout: Layout, say: Callable[[str], None]) -> None:
    simulation = layout.study.simulation or SimulationConfig()
    synth = simulation.data.synth
    seed = layout.study.seed if simulation.seed is None else simulation.seed
    names = {hospital.name for hospital in synth.hospitals}
    if missing := [site for site in layout.sites if site not in names]:
        raise UserError(f"{STUDY}: no synthetic hospital is named {missing[0]}", "name the same sites in both places")
    made = layout.out / "hospitals" / _MADE
    digest = hashlib.sha256(json.dumps([synth.model_dump(mode="json"), seed]).encode()).hexdigest()
    if _digest_in(made) == digest:
        say("synthetic hospitals: kept")
        return
    manifests = write_hospitals(layout.out / "hospitals", synth, seed)
    write_json(made, {"digest": digest})
    counts = ", ".join(
        f"{hospital.name} {hospital.train + hospital.val + hospital.test} pictures" for hospital in synth.hospitals
    )
    say(f"synthetic hospitals: made in {shown(manifests[0].parent.parent)}: {counts}")


def _digest_in(made: Path) -> str | None:
    try:
        return json.loads(made.read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make_keys(layout: Layout, say: Callable[[str], None]) -> None:
    """Each hospital makes its own, with its own command; the coordinator is handed the public halves."""
    making = {
        site: subprocess.Popen(
            [sys.executable, "-m", "client", "init", *layout.site_arguments(site)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for site in layout.sites
        if not layout.key(site).exists()
    }  # fmt: skip
    for site, command in making.items():
        _, told = command.communicate()
        if command.returncode:
            raise UserError(f"{site}: python -m client init failed: {told.strip()}", "mend that, and start again")
    register = registry.load_registry(layout.coordinator)
    for site in layout.sites:
        line = layout.key(site).with_suffix(".key.pub").read_text(encoding="utf-8")
        known = register.site(site).key
        if known is None or known.public_key != registry.read_public_key(line)[0]:
            known = registry.add_key(layout.coordinator, site, line, renew=known is not None)
        say(f"{site}: {'made its key' if site in making else 'key kept'}, {known.fingerprint}")
