"""The ClientApp of a site whose GPU fails once, in whichever process it is at work."""

from __future__ import annotations

import os
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp


class LosesItsGPU(ClientApp):
    """Fails in the first message that trains, and writes down the processes that trained.

    Args:
        notes: a file: a line for each such message.
    """

    def __init__(self, notes: Path):
        super().__init__()
        self._notes = notes

    def __call__(self, message: Message, context: Context) -> Message:
        from client.app import app
        from dusss_core.training.trainer import PhaseTrainer

        train = PhaseTrainer.train_round
        if message.metadata.message_type == "train":
            try:
                notes = self._notes.open("x")  # of two that come at once, one is the first
                PhaseTrainer.train_round = _broken
            except FileExistsError:
                notes = self._notes.open("a")
            with notes:
                notes.write(f"{os.getpid()}\n")
        try:
            return app(message, context)
        finally:
            PhaseTrainer.train_round = train


def _broken(self: object, round: int) -> None:
    raise RuntimeError("CUDA error: unspecified launch failure")
