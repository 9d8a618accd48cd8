"""A study that asks its nodes once who they are, and writes down what it was answered and what memory that took."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from server.deployment.grid import PatientGrid
from server.rounds.exchange import exchange
from server.rounds.replies import read_reply
from tests.server.bundles import pyproject

PYPROJECT = pyproject("asking", out="", nodes=1, patient=1, seconds=60)

server = ServerApp()


def peak_mb(pid: int | str) -> float:
    """The most memory that a process has held, in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1000


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Ask every node, and write each one's reply, when it came, and the peak of this process's memory."""
    settings = context.run_config
    give_up = time.monotonic() + 60
    while len(nodes := list(grid.get_node_ids())) < int(settings["nodes"]) and time.monotonic() < give_up:
        time.sleep(0.2)
    grid = PatientGrid(grid) if settings["patient"] else grid
    content = RecordDict({"config": ConfigRecord({"round": 0})})
    began, heard = time.monotonic(), {}

    def on_reply(node: int, message: Message) -> None:
        reply = read_reply(str(node), message)
        heard[str(node)] = {"reason": reply.reason, "texts": reply.texts, "after_s": time.monotonic() - began}

    messages = {node: Message(content, node, "query") for node in nodes}
    silent = exchange(grid, messages, float(settings["seconds"]), on_reply)
    told = {"heard": heard, "silent": list(silent), "took_s": time.monotonic() - began, "peak_mb": peak_mb("self")}
    Path(str(settings["out"])).write_text(json.dumps(told), encoding="utf-8")
