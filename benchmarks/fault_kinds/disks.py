"""Faults of data and disks."""

from __future__ import annotations

from benchmarks.fault_kinds.table import Outcome, fault, without_victim
from benchmarks.fault_lab import SITES, Lab, NotSurvived, fill, now, recovery, small_disk
from feddusss import cli


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
    lab.victim.stop()
    text = lab.victim.site_file.read_text()
    disk = lab.folder / name
    with small_disk(disk, 64) as filler:
        lab.victim.site_file.write_text(text.replace("state_dir: state", f"state_dir: {disk}/state"))
        lab.victim.start()
        lab.there.wait_online(set(SITES))
        with lab.study(name) as out:
            lab.end_of_round(out, 1)
            fill(filler)
            lab.end_of_round(out, 3)
            filler.unlink()
            since = now()
        lab.victim.stop()
    return without_victim(out, since)


@fault("disk full at the coordinator, resumed", quick=True)
def coordinator_disk_full(lab: Lab, name: str) -> Outcome:
    with small_disk(lab.folder / "runs" / name, 16) as filler:
        with lab.study(name, code=cli.USER_MUST_MEND) as out:
            lab.end_of_round(out, 1)
            fill(filler)
        filler.unlink()
        since = now()
        with lab.study(name, resume=True):
            pass
        lab.check_equal(out)
        return Outcome("the open round's work", recovery(out, since), True)


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
    with lab.study(name, resume=True):
        pass
    lab.check_equal(out)
    return Outcome("the open round's work, and the list of runs", recovery(out, since), True)
