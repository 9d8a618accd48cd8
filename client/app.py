"""The ClientApp of a hospital: three kinds of messages, each handed to `client.answer` with the site's own file.

Imports nothing heavy, so that a process which only says no starts at once.
"""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Who is there, with how many pictures."""
    return _answer("query", message, context)


@app.query("step")
def step(message: Message, context: Context) -> Message:
    """A small step of a secure sum: a query in form, and a part of a round (`feddusss.standing.STEP`)."""
    return _answer("query", message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round: validate the model, train it, send it back."""
    return _answer("train", message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Figures of a model on the site's data."""
    return _answer("evaluate", message, context)


def _answer(kind: str, message: Message, context: Context) -> Message:
    site_file = _site_file(context)
    if site_file is None:
        reason = "this node has no site: its node-config names no absolute path as site-config"
        content = RecordDict({"config": ConfigRecord({"declined": reason, "abstains": True})})
    else:
        from client.answer import answer

        content = answer(kind, message.content, site_file)
    return Message(content, reply_to=message)


def _site_file(context: Context) -> Path | None:
    """The site's file.

    A hospital's node names it itself. Only in Flower's simulation, where a node has a partition-id and no site-config,
    does the run's folder say where the simulated sites are: a hospital takes no path from a message.
    """
    named = context.node_config.get("site-config")
    if named is not None:
        path = Path(str(named))
        return path if path.is_absolute() else None
    partition = context.node_config.get("partition-id")
    folder = context.run_config.get("out")
    if type(partition) is not int or not isinstance(folder, str):
        return None
    index = Path(folder) / "sites" / "index.json"
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["site_files"]
    except (OSError, ValueError, KeyError):
        return None
    return index.parent / files[partition] if 0 <= partition < len(files) else None
