"""Private trainers that can be looked into: randomness that is fixed, sums that can be read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dusss_core.objectives import reads_sentences
from dusss_core.phases import Phase
from dusss_core.privacy.pretrain import PrivatePretrainer
from dusss_core.privacy.randomness import Randomness
from dusss_core.privacy.segment import PrivateSegmenter
from dusss_core.training import initial_shared
from tests.dusss_core.conftest import FakeBank, make_config


class Fixed(Randomness):
    """Everybody is drawn, every record is augmented alike, and nothing is added: the sum itself comes out."""

    def __init__(self, groups=None):
        super().__init__()
        self.of_group = groups

    def normals(self, count):
        return np.zeros(count)

    def poisson_draw(self, count, rate):
        return np.ones(count, bool)

    def groups(self, count, groups):
        return self.of_group

    def generator(self):
        return torch.Generator().manual_seed(7)


class PublicText(FakeBank):
    """Features of the public captions, without a language model."""

    def features(self, indices, *, mirrored=None, view=None):
        draw = torch.Generator().manual_seed(3)
        tokens = torch.randn(32, 6, 384, generator=draw)[indices]
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)


def private_config(**changes):
    privacy = {"sample_rate": 0.5, "steps_per_round": 1, **changes.pop("privacy", {})}
    return make_config(**{"student": {"width": 4, "norm": "group"}, "privacy": privacy, **changes})


def segmenter(config, train, logits=None, kind=PrivateSegmenter, records=10):
    text = FakeBank() if reads_sentences(config) else None
    trainer = kind(config, "a", train, train, text_logits=logits, text=text, records=records)
    trainer.load_shared(initial_shared(config, Phase.SEGMENT))
    return trainer


def pretrainer(config, train, kind=PrivatePretrainer, records=1000):
    trainer = kind(config, "a", train, train, FakeBank(), records=records, public_text=PublicText())
    trainer.load_shared(initial_shared(config, Phase.PRETRAIN))
    return trainer


def released_sum(trainer, randomness=None, round=1):
    """The sum behind the gradient of a round's last step, as one vector."""
    trainer.randomness = randomness or Fixed()
    trainer.train_round(round)
    return trainer.expected * torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


@pytest.fixture
def public_text():
    return PublicText()
