"""A tiny world for the method: 32 x 32 pictures with one bright square, on the side that the sentence names."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from dusss_core.config import TrainingConfig
from dusss_core.files import digest_of_tensors
from dusss_core.records import Split

SENTENCES = ("infected area in the left lung.", "infected area in the right lung.")


class FakeBank:
    """Token features without a language model: constant per sentence, mirrored sentence and wording."""

    embedding_width = 384

    def __init__(self):
        draw = torch.Generator().manual_seed(0)
        self.table = torch.randn(2, 6, 384, generator=draw)
        self.wording = 0.1 * torch.randn(8, 6, 384, generator=draw)

    def may_flip(self, indices):
        return torch.ones(len(indices), dtype=torch.bool)

    def may_turn(self, indices):
        return indices < 0

    def identity(self, indices, mirrored=None):
        indices = indices.cpu()
        return indices.clamp(min=0) if mirrored is None else (indices.clamp(min=0) + mirrored.cpu().long()) % 2

    def features(self, indices, *, mirrored=None, view=None):
        indices = indices.cpu()
        tokens = self.table[self.identity(indices, mirrored)]
        if view is not None:
            tokens = tokens + self.wording[view.cpu()]
        there = indices >= 0
        mask = there[:, None] | (torch.arange(tokens.shape[1]) == 0)
        return tokens * there[:, None, None], mask


def make_split(n=12, labelled=4, with_text=None, seed=0, size=32):
    rng = np.random.default_rng(seed)
    images = rng.integers(40, 90, (n, 1, size, size), dtype=np.uint8)
    masks = np.zeros((n, size, size), np.uint8)
    sentence = np.arange(n) % 2
    for i in range(n):
        row = rng.integers(4, size - 14)
        column = rng.integers(2, 5) if sentence[i] == 0 else rng.integers(size - 14, size - 11)
        masks[i, row : row + 10, column : column + 9] = 1
        images[i, 0][masks[i] > 0] += 90
    sentence = sentence.astype(np.int64)
    if with_text is not None:
        sentence[with_text:] = -1
    flags = np.zeros(n, bool)
    flags[:labelled] = True
    return Split(images, masks, flags, np.ones(n, bool), sentence, SENTENCES, tuple(f"r{i}" for i in range(n)))


def make_config(**changes) -> TrainingConfig:
    values = {
        "study": "tiny",
        "image": {"size": 32},
        "vlm": {"image_encoder": "test_resnet", "dim": 16, "decoder_width": 16, "patch_stride": 8},
        "student": {"width": 4},
        "pretrain": {"rounds": 2, "batch": 6, "optimizer": {"lr": 1e-3}},
        "segment": {"rounds": 2, "batch": 6, "optimizer": {"lr": 1e-3}},
    }
    return TrainingConfig.model_validate({**values, **changes})


@pytest.fixture
def bank():
    return FakeBank()


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A BERT of two small layers, with dropout, in a local folder, with MiniLM's tokenizer."""
    import transformers

    from dusss_core.text.encoder import locate

    folder = tmp_path_factory.mktemp("tiny_bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, max_position_embeddings=64)
    assert config.hidden_dropout_prob > 0
    transformers.BertModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(locate("minilm").folder / name, folder / name)
    return folder


def assert_federation_of_one_is_plain(straight, federated) -> None:
    """Two equal trainers; the second one's model goes to a coordinator and back after each of two rounds."""
    for number in (1, 2):
        straight.train_round(number)
        federated.train_round(number)
        federated.load_shared(federated.shared())
    assert digest_of_tensors(straight.shared()) == digest_of_tensors(federated.shared())
    assert digest_of_tensors(straight.private()) == digest_of_tensors(federated.private())
