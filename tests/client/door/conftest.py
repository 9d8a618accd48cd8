"""What several tests of the door ask for."""

from __future__ import annotations

import pytest


@pytest.fixture
def bait(tmp_path):
    """A folder that a message might name, with what a model's folder holds."""
    folder = tmp_path / "bait"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.txt"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def worked(fake, monkeypatch):
    """Epochs, steps, round, picture size and phase of every round that is really trained."""
    rounds = []

    def watched(self, round, train=fake._Trainer.train_round):
        settings = getattr(self.config, self.phase)
        rounds.append((settings.epochs, self.steps_per_round, round, self.config.image.size, self.config.study))
        return train(self, round)

    monkeypatch.setattr(fake._Trainer, "train_round", watched)
    return rounds
