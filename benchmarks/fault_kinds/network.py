"""Faults of the line between a hospital and the coordinator, and of its clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.fault_kinds.table import Outcome, fault, without_victim
from benchmarks.fault_lab import AN_HOUR_OFF, SITES, Cable, Lab, check_means, misbehaving, now, recovery
from tests.deployment import wait_until
from tests.server.deployed import metrics


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
        return without_victim(out, since)


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
    return without_victim(out, since, "its upload stopped in the middle")


@fault("a site slower than the deadline", quick=True)
def slow_site(lab: Lab, name: str) -> Outcome:
    with lab.study(name, "federation.round_timeout_s=20") as out:
        lab.end_of_round(out, 1)
        with lab.worker_held(lab.victim):
            lab.end_of_round(out, 2)
            since = now()
    return without_victim(out, since, "no answer in time")


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
