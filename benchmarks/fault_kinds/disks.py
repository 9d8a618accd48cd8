"""Faults of data and disks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fault_kinds.table import Outcome, fault, resumed, without_victim
from benchmarks.fault_lab import SITES, Lab, NotSurvived, fill, now, read_only, small_disk
from feddusss import cli

_MOST_LINES = 5
"""That a person at the hospital should see of a disk that cannot be written, whatever it lasts."""


@fault("a corrupt picture appearing in mid-study")
def corrupt_picture(lab: Lab, name: str) -> Outcome:
    picture = next(path for path in sorted(lab.victim.folder.rglob("*.png")) if "mask" not in str(path))
    whole = picture.read_bytes()
    try:
        with lab.study(name) as out:
            lab.end_of_round(out, 1)
            picture.write_bytes(whole[: len(whole) // 2])
            lab.kill_client(lab.victim)  # a site that runs has the picture in its memory
            lab.victim.start()
            with lab.rounds_held():
                if lab.victim.process.wait(300) != cli.USER_MUST_MEND:
                    raise NotSurvived(f"the client did not refuse its data: {lab.victim.output[-300:]}")
                picture.write_bytes(whole)
                since = now()
            lab.start_victim()
        return without_victim(out, since)
    finally:
        picture.write_bytes(whole)


@fault("disk full at the site")
def site_disk_full(lab: Lab, name: str) -> Outcome:
    with _disk_of_the_victim(lab, name) as (_, filler), lab.study(name) as out:
        lab.end_of_round(out, 1)
        fill(filler)
        lab.end_of_round(out, 3)
        filler.unlink()
        since = now()
    return without_victim(out, since)


@fault("disk of a site read-only in mid-study, and writable again")
def site_disk_read_only(lab: Lab, name: str) -> Outcome:
    with _disk_of_the_victim(lab, name) as (disk, _), lab.study(name) as out:
        lab.end_of_round(out, 1)
        before = len(lab.victim.output.splitlines())
        with read_only(disk):
            lab.end_of_round(out, 3)
            told = lab.victim.output.splitlines()[before:]
        since = now()
    if not any("cannot write its audit log" in line for line in told):
        raise NotSurvived(f"the hospital was not told: {told}")
    if len(told) > _MOST_LINES or any("Traceback" in line for line in told):
        raise NotSurvived(f"the hospital was told {len(told)} lines: {told[:5]}")
    return without_victim(out, since, "cannot write its audit log")


@contextmanager
def _disk_of_the_victim(lab: Lab, name: str) -> Iterator[tuple[Path, Path]]:
    """The victim keeps its state on a small disk of its own; gives that, and a file that fills it."""
    lab.victim.stop()
    text = lab.victim.site_file.read_text()
    disk = lab.folder / name
    with small_disk(disk, 64) as filler:
        lab.victim.site_file.write_text(text.replace("state_dir: state", f"state_dir: {disk}/state"))
        lab.victim.start()
        lab.there.wait_online(set(SITES))
        yield disk, filler
        lab.victim.stop()


@fault("disk full at the coordinator, resumed", quick=True)
def coordinator_disk_full(lab: Lab, name: str) -> Outcome:
    with small_disk(lab.folder / "runs" / name, 16) as filler:
        with lab.study(name, code=cli.USER_MUST_MEND) as out:
            lab.end_of_round(out, 1)
            fill(filler)
        filler.unlink()
        since = now()
        return resumed(lab, name, out, since, "the open round's work")


@fault("database of the coordinator deleted, resumed")
def database_deleted(lab: Lab, name: str) -> Outcome:
    from client.secure.keys import public_path

    out, process = lab.interrupted_study(name)
    try:
        lab.train_site(out, 3)
        lab.link.kill()
        for file in lab.link.folder.glob("superlink.db*"):
            file.unlink()
        lab.link.start()
        lab.victim.wait_for("lost its list of keys, and takes them up again by itself", 300)
        for client in lab.there.clients.values():  # as `start.sh` does from sites.json
            lab.link.register(client.name, public_path(client.key))
        lab.there.wait_online(set(SITES), 600)
        since = now()
    finally:
        process.end()
    return resumed(lab, name, out, since, "the open round's work, and the list of runs")
