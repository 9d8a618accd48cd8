"""The faults of `benchmarks/faults.py`: each does something to the federation and says what was lost.

A fault raises NotSurvived (or AssertionError) if the study did not do what it must.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

from benchmarks.fault_gateway import gateway
from benchmarks.fault_lab import (
    AN_HOUR_OFF,
    SITES,
    Cable,
    Lab,
    NotSurvived,
    check_means,
    fill,
    lost,
    misbehaving,
    now,
    poisoned,
    recovery,
    small_disk,
)
from feddusss import cli
from tests.deployment import Client, wait_until
from tests.server.deployed import metrics


@dataclass(frozen=True)
class Outcome:
    """What a fault did."""

    lost: str
    recovery_s: float | None = None
    """From the fault (or from its end, where it lasts) until a round with all sites was saved; None: not applicable."""
    equal: bool | None = None
    """Whether the final model was compared with the undisturbed one, and was the same."""


@dataclass(frozen=True)
class Fault:
    name: str
    title: str
    do: Callable[[Lab, str], Outcome]
    quick: bool


FAULTS: dict[str, Fault] = {}


def fault(title: str, *, quick: bool = False):
    """Adds a function to the table. It does the fault and raises NotSurvived."""

    def add(do: Callable[[Lab, str], Outcome]) -> Callable[[Lab, str], Outcome]:
        FAULTS[do.__name__] = Fault(do.__name__, title, do, quick)
        return do

    return add


# Processes.


@fault("client killed -9 while training", quick=True)
def client_killed(lab: Lab, name: str) -> Outcome:
    with lab.study(name) as out:
        lab.train_site(out, 2)
        lab.kill_client(lab.victim)
        since = now()
        lab.start_victim()
    return _without_victim(out, since)


@fault("client machine gone for two rounds and back")
def client_gone(lab: Lab, name: str) -> Outcome:
    with lab.study(name) as out:
        lab.end_of_round(out, 1)
        lab.kill_client(lab.victim)
        lab.end_of_round(out, 3)
        since = now()
        lab.start_victim()
    return _without_victim(out, since)


@fault("SuperLink killed -9 while a round is open, restarted, resumed", quick=True)
def superlink_killed(lab: Lab, name: str) -> Outcome:
    out, process = lab.interrupted_study(name)
    try:
        lab.train_site(out, 3)
        lab.link.kill()
        since = now()
        lab.link.start()
    finally:
        process.end()
    with lab.study(name, resume=True):
        pass
    lab.check_equal(out)
    return Outcome("the open round's work", recovery(out, since), True)


@fault("ServerApp killed -9, resumed")
def serverapp_killed(lab: Lab, name: str) -> Outcome:
    out, process = lab.interrupted_study(name)
    try:
        lab.train_site(out, 3)
        lab.kill_serverapp()
        since = now()
    finally:
        process.end()
    with lab.study(name, resume=True):
        pass
    lab.check_equal(out)
    return Outcome("the open round's work", recovery(out, since), True)


@fault("two clients for one site")
def two_clients(lab: Lab, name: str) -> Outcome:
    second = Client(lab.victim.folder, lab.link)
    with lab.study(name) as out:
        lab.end_of_round(out, 1)
        second.start()
        code = second.process.wait(120)
        if code != cli.USER_MUST_MEND:
            raise NotSurvived(f"the second client ended with exit code {code}: {second.output[-300:]}")
    lab.check_equal(out)
    return Outcome("nothing; the second client is refused", None, True)


# Network and time.


@fault("network of one site cut for a minute and healed")
def network_cut(lab: Lab, name: str) -> Outcome:
    with _through_a_cable(lab) as cable:
        with lab.study(name) as out:
            lab.train_site(out, 2)
            cable.cut()
            lab.end_of_round(out, 2)
            with lab.rounds_held():
                time.sleep(max(0.0, cable.cut_at + 60 - time.monotonic()))
                since = now()
                cable.mend()
                # it counts as connected only if it has come back: the minute was long enough to be missed
                lab.there.wait_online({"cedar"})
        return _without_victim(out, since)


@contextmanager
def _through_a_cable(lab: Lab) -> Iterator[Cable]:
    """The victim reaches the coordinator through a line that can be cut."""
    cable = Cable(lab.link.port)
    try:
        lab.victim.stop()
        text = lab.victim.site_file.read_text().replace(lab.link.address, f"127.0.0.1:{cable.port}")
        lab.victim.site_file.write_text(text)
        lab.victim.start()
        lab.there.wait_online(set(SITES))
        yield cable
    finally:
        lab.victim.stop()
        cable.close()


def _cut_in_upload(cable: Cable, size: int) -> None:
    """Cut the line when so many bytes have gone out."""
    cable.cut_after(size)
    wait_until(lambda: cable.is_cut, 300, "the line to be cut")


def _size_of_answer(lab: Lab, out: Path) -> int:
    """Bytes of the victim's answer to round 1, once that is over."""
    lab.end_of_round(out, 1)
    return next(line["bytes_up"] for line in metrics(out) if line["site"] == "cedar")


@fault("an upload broken in the middle, for 25 s and again for two minutes")
def upload_broken(lab: Lab, name: str) -> Outcome:
    with _through_a_cable(lab) as cable, lab.study(name) as out:
        size = _size_of_answer(lab, out)
        lab.train_site(out, 2)
        for share, seconds in ((0.5, 25), (0.3, 120)):
            _cut_in_upload(cable, int(share * size))
            time.sleep(seconds)
            since = now()
            cable.mend()
    check_means(out)
    lab.check_trained_once(out)
    lab.check_equal(out)
    return Outcome("nothing: the answer is sent again", recovery(out, since), True)


@fault("an upload broken in the middle, and the line away for longer than the SuperLink keeps what it has")
def upload_given_up(lab: Lab, name: str) -> Outcome:
    with _through_a_cable(lab) as cable, lab.study(name) as out:
        size = _size_of_answer(lab, out)
        lab.train_site(out, 2)
        _cut_in_upload(cable, size // 2)
        lab.end_of_round(out, 2)
        with lab.rounds_held():
            since = now()
            cable.mend()
            # long ago it stopped to count as connected
            lab.there.wait_online({"cedar"})
    check_means(out)
    return _without_victim(out, since, "its upload stopped in the middle")


@fault("a site slower than the deadline", quick=True)
def slow_site(lab: Lab, name: str) -> Outcome:
    with lab.study(name, "federation.round_timeout_s=20") as out:
        lab.end_of_round(out, 1)
        with lab.worker_held(lab.victim):
            lab.end_of_round(out, 2)
            since = now()
    return _without_victim(out, since, "no answer in time")


@fault("clock of a site an hour off")
def clock_off(lab: Lab, name: str) -> Outcome:
    lab.victim.stop()
    with lab.study(name) as out:
        lab.end_of_round(out, 1)
        with lab.rounds_held():
            lab.victim.start(**misbehaving(lab.folder / name, AN_HOUR_OFF))
            lab.victim.wait_for("set this machine's clock", 300)
            lab.victim.stop()
            since = now()
        lab.start_victim()
    return Outcome("the site is refused until its clock is right, and says so", recovery(out, since))


# Updates.


def _bad_update(lab: Lab, name: str, damage: str, reason: str) -> Outcome:
    lab.victim.stop()
    lab.victim.start(**misbehaving(lab.folder / name, poisoned(damage)))
    try:
        lab.there.wait_online(set(SITES))
        with lab.study(name) as out:
            lab.end_of_round(out, 2)
            since = now()
    finally:
        lab.victim.stop()
    return _without_victim(out, since, reason)


@fault("an update with NaN", quick=True)
def nan_update(lab: Lab, name: str) -> Outcome:
    return _bad_update(lab, name, "next(iter(tensors.values())).view(-1)[0] = float('nan')", "holds NaN or infinity")


@fault("an update with a wrong shape")
def wrong_shape(lab: Lab, name: str) -> Outcome:
    damage = "key = next(iter(tensors)); tensors[key] = tensors[key][..., None]"
    return _bad_update(lab, name, damage, "instead of float32")


@fault("an update a thousand times too large", quick=True)
def too_large(lab: Lab, name: str) -> Outcome:
    damage = "tensors.update({key: t * 1000 for key, t in tensors.items() if t.is_floating_point()})"
    return _bad_update(lab, name, damage, "times as large as the median")


@fault("figures of a liar: a Dice of 5")
def liars_figures(lab: Lab, name: str) -> Outcome:
    return _bad_update(lab, name, "figures['val.dice'] = 5.0", "'val.dice' is 5")


@fault("a variance below 0")
def impossible_statistics(lab: Lab, name: str) -> Outcome:
    damage = "[t.fill_(-1e30) for key, t in tensors.items() if key.endswith('running_var')]"
    return _bad_update(lab, name, damage, "holds a variance below 0")


@fault("a huge answer: 200 MB")
def huge_reply(lab: Lab, name: str) -> Outcome:
    return _bad_update(lab, name, "tensors['x'] = torch.zeros(50_000_000)", "larger than the")


# Data and disks.


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
        return _without_victim(out, since)
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
    return _without_victim(out, since)


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


# Keys, certificates, code.


@fault("wrong key")
def wrong_key(lab: Lab, name: str) -> Outcome:
    lab.victim.stop()
    folder = lab.folder / name / "cedar"
    folder.mkdir(parents=True)
    text = lab.victim.site_file.read_text().replace("manifest.csv", str(lab.victim.folder / "manifest.csv"))
    with Client(folder, lab.link, register=False) as stranger:
        stranger.site_file.write_text(text)
        with lab.study(name) as out:
            lab.end_of_round(out, 1)
            with lab.rounds_held():
                stranger.start()
                stranger.wait_for("does not know this site's key", 300)
                stranger.stop()
                since = now()
            lab.start_victim()
    return Outcome("the stranger is never let in, and is told why", recovery(out, since))


@fault("revoked key, and a new one in its place")
def revoked_key(lab: Lab, name: str) -> Outcome:
    from client.secure.keys import make_key, public_path

    with lab.study(name) as out:
        lab.end_of_round(out, 1)
        with lab.link.control() as control:
            node = next(node.id for node in control.nodes() if node.name == "cedar")
            control.unregister(node)
        lab.end_of_round(out, 3)
        with lab.rounds_held():
            lab.victim.wait_for("no longer accepts this site's key|does not know this site's key", 300)
            lab.victim.stop()
            make_key(lab.victim.key, "cedar", force=True)
            lab.link.register("cedar", public_path(lab.victim.key))
            since = now()
        lab.start_victim()
    return _without_victim(out, since)


@fault("expired certificate, renewed")
def expired_certificate(lab: Lab, name: str) -> Outcome:
    from server.deployment import certificates

    files = lab.link.folder
    authority = certificates.Authority(files / "ca.key", files / "ca.crt")
    pair = certificates.ServerPair(files / "server.key", files / "server.crt")
    valid = pair.certificate.read_bytes()
    out, process = lab.interrupted_study(name)
    try:
        lab.end_of_round(out, 1)
        lab.link.kill()
        with patch.object(certificates, "_CLOCK_SKEW", timedelta(days=2)):
            certificates.make_server_certificate(authority, pair, (), -1)
        try:
            lab.link.start()
            raise NotSurvived("the SuperLink runs with a certificate that has expired")
        except AssertionError as ended:
            if "renew-certificate" not in str(ended):
                raise
        with gateway(lab.link.port, pair.certificate, pair.key):
            lab.victim.stop()
            lab.victim.start()
            lab.victim.wait_for("it has expired", 180)
    finally:
        process.end()
        lab.link.kill()
        pair.certificate.write_bytes(valid)
        lab.link.start()
    since = now()
    with lab.study(name, resume=True):
        pass
    lab.check_equal(out)
    return Outcome("the rounds until the certificate is renewed", recovery(out, since), True)


@fault("foreign app: a bundle that is not the release's")
def foreign_app(lab: Lab, name: str) -> Outcome:
    from flwr.cli.build import build_fab_from_disk

    from feddusss.bundle import write_app

    app = write_app(lab.folder / name / "app")
    (app / "client").mkdir()
    (app / "client" / "app.py").write_text("raise SystemExit('this code must never run')\n")
    lab.link.submit(build_fab_from_disk(app))
    wait_until(lambda: "refused" in lab.victim.output, 120, "the client to refuse it")
    with lab.study(name) as out:
        pass
    lab.check_equal(out)
    return Outcome("nothing; every site refuses it before it is unpacked", None, True)


def _without_victim(out: Path, since: float, reason: str = "") -> Outcome:
    """The outcome where cedar missed rounds and came back.

    Raises:
        NotSurvived: it missed none, for another reason, its name is not in the log, or it never came back.
    """
    missed = lost(out)
    if not missed:
        raise NotSurvived("no round was done without cedar: the fault did not happen")
    if reason and not any(reason in told for told in missed.values()):
        raise NotSurvived(f"cedar was left out for another reason: {missed}")
    if "cedar:" not in (out / "log.txt").read_text():
        raise NotSurvived("the log does not name cedar")
    seconds = recovery(out, since)
    if seconds is None:
        raise NotSurvived("cedar did not come back into a round")
    told = "; ".join(sorted(set(missed.values())))
    return Outcome(f"cedar's part of round{'s' * (len(missed) > 1)} {', '.join(map(str, missed))} ({told})", seconds)
