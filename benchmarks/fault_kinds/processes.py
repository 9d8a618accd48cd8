"""Faults of processes: they are killed, or there is one too many."""

from __future__ import annotations

from benchmarks.fault_kinds.table import Outcome, fault, resumed, without_victim
from benchmarks.fault_lab import Lab, NotSurvived, now
from feddusss import cli
from tests.deployment import Client


@fault("client killed -9 while training", quick=True)
def client_killed(lab: Lab, name: str) -> Outcome:
    with lab.study(name) as out:
        lab.train_site(out, 2)
        lab.kill_client(lab.victim)
        since = now()
        lab.start_victim()
    return without_victim(out, since)


@fault("client machine gone for two rounds and back")
def client_gone(lab: Lab, name: str) -> Outcome:
    with lab.study(name) as out:
        lab.end_of_round(out, 1)
        lab.kill_client(lab.victim)
        lab.end_of_round(out, 3)
        since = now()
        lab.start_victim()
    return without_victim(out, since)


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
    return resumed(lab, name, out, since, "the open round's work")


@fault("ServerApp killed -9, resumed")
def serverapp_killed(lab: Lab, name: str) -> Outcome:
    out, process = lab.interrupted_study(name)
    try:
        lab.train_site(out, 3)
        lab.kill_serverapp()
        since = now()
    finally:
        process.end()
    return resumed(lab, name, out, since, "the open round's work")


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
