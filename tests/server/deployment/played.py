"""A SuperLink that is played, and what a ServerApp tells."""

from __future__ import annotations

from server.deployment import control
from server.deployment.control import FlowerRun, Node, SuperLinkAway
from server.runs.eventlog import EventLog


class PlayedSuperLink:
    """Starts nothing; `do(settings, run_id)` is what the ServerApp does at once."""

    address = "127.0.0.1:9"

    def __init__(self):
        self.known: dict[int, FlowerRun] = {}
        self.stopped: list[int] = []
        self.started: list[dict] = []
        self.do = lambda out, run_id: None
        self.ends_as = "completed"
        self.told = "told"
        self.away = False

    def start(self, settings):
        number = len(self.known) + 1
        self.started.append(settings)
        out = control.Path(settings["out"])
        self.known[number] = FlowerRun(number, "running", "", "", out, "2026-01-01T10:00:00+00:00")
        self.do(out, number)
        if self.ends_as:
            self.known[number] = FlowerRun(
                number, "finished", self.ends_as, self.told, out, "2026-01-01T10:00:00+00:00"
            )
        return number

    def run(self, number):
        if self.away:
            raise SuperLinkAway("the SuperLink does not answer")
        return self.known[number]

    def runs(self):
        return list(self.known.values())

    def stop(self, number):
        self.stopped.append(number)
        return True

    def nodes(self):
        return [
            Node(11, "alder", "online", "2026-01-01T10:00:00+00:00", "SHA256:abc"),
            Node(12, "", "offline", "", ""),
        ]


def server_app(*events, code=0, text=""):
    """A ServerApp that tells `events` and ends."""

    def do(out, run_id):
        log = EventLog(out)
        log.begin(run_id)
        for name, *arguments in events:
            getattr(log, name)(*arguments)
        log.end(code, text)

    return do


ROUND = [
    ("on_study", "tiny", ["alder", "birch"], {"segment": 2}),
    ("on_phase", "segment", 2, 1),
    ("on_round_start", "segment", 1, 2, ["alder", "birch"]),
    ("on_site_start", "alder"),
    ("on_site_done", "alder", {"train.loss": 0.5}),
    ("on_site_refused", "birch", "no answer in time"),
    ("on_round_end", "segment", 1, {"train.loss": 0.5, "val.loss": 0.7, "val.dice": 0.1, "seconds": 2.0}, None),
]
