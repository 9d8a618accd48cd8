"""A trivial study for tests of the way to the sites: each node sends back what it gets; who did is written down.

The bundle names these modules and carries none, as the real one does.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from tests.server.bundles import pyproject

PYPROJECT = pyproject("echo", out="", nodes=1, megabytes=1)

server = ServerApp()
client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Send the numbers back, doubled."""
    content = RecordDict(
        {"x": ArrayRecord({"x": Array(message.content["x"]["x"].numpy() * 2)})},
    )
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Send to every node, and write which node answered with what."""
    settings = context.run_config
    give_up = time.monotonic() + 60
    while len(nodes := list(grid.get_node_ids())) < int(settings["nodes"]) and time.monotonic() < give_up:
        time.sleep(0.5)
    numbers = np.arange(int(settings["megabytes"]) * 2**20 // 4, dtype=np.float32)
    messages = [
        Message(RecordDict({"x": ArrayRecord({"x": Array(numbers)})}), dst_node_id=node, message_type="train")
        for node in nodes
    ]
    replies = {
        str(reply.metadata.src_node_id): bool(np.array_equal(reply.content["x"]["x"].numpy(), numbers * 2))
        for reply in grid.send_and_receive(messages, timeout=120)
        if reply.has_content()
    }
    Path(str(settings["out"])).write_text(json.dumps(replies), encoding="utf-8")
