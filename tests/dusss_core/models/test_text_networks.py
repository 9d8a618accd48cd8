"""Students that can be given a sentence: counted exactly, and what a sentence, or none, does to their answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dusss_core.models.early_fusion import EarlyFusion
from dusss_core.models.lvit import LViT, PixelWeight
from dusss_core.models.transformer import Block
from dusss_core.models.vilt import ViLT
from dusss_core.models.weights import local_tensors, shared_tensors
from dusss_core.models.words import Words, joined, no_words

E, SIZE = 24, 32
NETWORKS = {
    "early_fusion": lambda norm="batch": EarlyFusion(1, 1, 8, norm, SIZE, E),
    "lvit": lambda norm="batch": LViT(1, 1, 8, norm, SIZE, E),
    "vilt": lambda norm="batch": ViLT(1, 1, 8, norm, SIZE, E, words=16, layers=2, patch=16),
}


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def made(name: str) -> nn.Module:
    """With statistics that fit its weights: fresh ones would let nothing pass."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = None
    with torch.no_grad():
        for seed in range(4):
            network(pictures(8), sentences(8, length=16, seed=seed))
    return network.eval()


def pictures(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def sentences(n: int = 3, length: int = 8, seed: int = 2) -> Words:
    """Of 3, 4, ... tokens."""
    tokens = torch.randn(n, length, E, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(length) < 3 + torch.arange(n)[:, None]
    return Words(tokens * mask[..., None], mask)


@pytest.mark.parametrize(
    ("channels", "size", "text_width", "parameters"),
    [
        (3, 224, 768, 29_908_033),
        (3, 112, 768, 29_762_062),
        (1, 112, 768, 29_760_910),
        # the first convolution of the text shrinks from 1,180,160 to 590,336
        (3, 224, 384, 29_318_209),
        (1, 112, 384, 29_171_086),
    ],
)
def test_lvit_has_the_published_number_of_parameters(channels, size, text_width, parameters):
    with torch.device("meta"):
        assert count(LViT(channels, 1, 64, "batch", size, text_width)) == parameters


def test_vilt_at_full_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = ViLT(3, 1, 64, "batch", 224, 384, words=48)
        assert count(network.patches, network.blocks, network.norm) == 87_416_064
        assert len(network.blocks) == 12 and {block.heads for block in network.blocks} == {12}


def test_early_fusion_is_the_papers_unet_with_three_channels_more_and_a_generator():
    with torch.device("meta"):
        network = EarlyFusion(3, 1, 64, "batch", 224, 768)
        assert count(network.unet) == 14_751_873 + 3 * 64 * 9
        assert count(network.project) == (768 * 784 + 784) + 2 * 784 + (784 * 784 + 784)
        assert count(network.draw) == (16 * 16 + 16) + (16 * 8 * 16 + 8) + (8 * 3 * 16 + 3)


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    def test_the_sentence_changes_the_answer(self, name):
        network, x = made(name), pictures()
        with torch.no_grad():
            told, otherwise, alone = network(x, sentences()), network(x, sentences(seed=3)), network(x)
        assert told.shape == (3, 1, SIZE, SIZE)
        assert not torch.allclose(told, otherwise) and not torch.allclose(told, alone)

    def test_a_sentence_that_is_withheld_tells_nothing(self, name):
        network, x = made(name), pictures()
        everywhere = torch.ones(3, dtype=torch.bool)
        with torch.no_grad():
            alone = network(x)
            for seed in (2, 3):
                withheld = network(x, sentences(seed=seed).withheld(everywhere))
                torch.testing.assert_close(withheld, alone, rtol=1e-5, atol=1e-6)
            some = network(x, sentences().withheld(torch.tensor([True, False, True])))
            torch.testing.assert_close(some[[0, 2]], alone[[0, 2]], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(some[1], network(x, sentences())[1], rtol=1e-5, atol=1e-6)

    def test_what_stands_behind_the_last_token_does_not_matter(self, name):
        network, x, text = made(name), pictures(), sentences()
        noisy = Words(torch.where(text.mask[..., None], text.tokens, 9.0), text.mask)
        with torch.no_grad():
            for same in (noisy, text.of_length(16), joined([text])):
                torch.testing.assert_close(network(x, same), network(x, text), rtol=1e-5, atol=1e-6)

    def test_group_norm_leaves_no_buffers_and_no_batch_norm(self, name):
        network = NETWORKS[name]("group")
        assert not list(network.buffers())
        assert network(pictures(), sentences()).isfinite().all()

    def test_normalisation_layers_of_every_kind_stay_at_the_site_under_fedbn(self, name):
        network = made(name)
        kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
        layers = {prefix for prefix, module in network.named_modules() if isinstance(module, kinds)}
        assert any(isinstance(module, nn.LayerNorm) for module in network.modules())
        assert {key.rsplit(".", 1)[0] for key in local_tensors(network, True)} == layers
        assert not {key for key in shared_tensors(network, True) if key.rsplit(".", 1)[0] in layers}

    def test_every_parameter_is_trained_by_a_picture_and_its_sentence(self, name):
        network = made(name).train()
        network(pictures(), sentences()).square().sum().backward()
        assert {key for key, p in network.named_parameters() if p.grad is None} == set()


def test_lvit_reads_the_first_ten_tokens():
    network, x = made("lvit"), pictures()
    text = Words(torch.randn(3, 16, E), torch.ones(3, 16, dtype=torch.bool))
    with torch.no_grad():
        for place, same in ((9, False), (10, True)):
            tokens = text.tokens.clone()
            tokens[:, place] += 1
            assert torch.equal(network(x, Words(tokens, text.mask)), network(x, text)) == same


def test_vilt_sees_words_as_a_set_of_words_with_positions():
    network, x = made("vilt"), pictures()
    text = Words(torch.randn(3, 8, E), torch.ones(3, 8, dtype=torch.bool))
    order = torch.tensor([5, 2, 7, 0, 1, 3, 6, 4])
    exchanged = Words(text.tokens[:, order], text.mask)
    with torch.no_grad():
        before = network(x, text)
        assert not torch.allclose(network(x, exchanged), before, atol=1e-5)
        network.word_position[:8] = network.word_position[:8][order]
        torch.testing.assert_close(network(x, exchanged), before, rtol=1e-4, atol=1e-5)


def test_a_skip_of_lvit_is_multiplied_by_one_factor_a_pixel_without_a_sigmoid():
    weigh = PixelWeight(2)
    with torch.no_grad():
        weigh.mean.weight.copy_(torch.eye(2)[..., None, None])
        weigh.largest.weight.copy_(torch.eye(2)[..., None, None])
        first, _, last = weigh.factor
        first.weight.zero_(), first.bias.zero_(), last.weight.fill_(1), last.bias.fill_(-10)
        first.weight[0, 0], first.weight[1, 1], first.weight[2, 2] = 1, 10, 100
        x = torch.tensor([1.0, -3.0])[None, :, None, None]
        # ReLU leaves (1, 0): mean 1/2; the largest is 1; their sum 3/2: 1/2 + 10 + 150 - 10
        torch.testing.assert_close(weigh(x), x * 150.5)


def test_a_block_does_not_look_at_what_is_hidden():
    torch.manual_seed(0)
    block, x = Block(16, 8), torch.randn(2, 5, 16)
    seen = torch.tensor([[True, True, True, False, False]]).expand(2, -1)
    other = torch.where(seen[..., None], x, 7.0)
    with torch.no_grad():
        torch.testing.assert_close(block(x, seen)[:, :3], block(other, seen)[:, :3])
        torch.testing.assert_close(block(x, seen)[:, :3], block(x[:, :3]))
        assert not torch.allclose(block(x)[:, :3], block(other)[:, :3])


def test_no_words_are_what_a_record_without_a_sentence_has():
    x = pictures()
    nothing = no_words(x, E)
    assert nothing.tokens.shape == (3, 1, E) and not nothing.tokens.any() and nothing.mask.all()
    assert torch.equal(nothing.mean(), torch.zeros(3, E))
