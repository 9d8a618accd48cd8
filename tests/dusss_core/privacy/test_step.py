"""The step bounds every record, forgives a damaged one, and lets nothing out beside the sum."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dusss_core.privacy.randomness import Randomness
from dusss_core.privacy.step import _scaled, clipped_sum, private_gradient, trained


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.Conv2d(4, 1, 1))


def squared(model):
    return lambda record: (model(record) ** 2).mean()


def records(count=5):
    torch.manual_seed(1)
    return [10**i * torch.randn(1, 1, 8, 8) for i in range(-2, count - 2)]


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def own_gradient(model, record):
    return flat(torch.autograd.grad(squared(model)(record), list(model.parameters())))


@pytest.mark.parametrize("clip", [1e-3, 0.3, 1e4])
def test_the_sum_is_that_of_the_clipped_gradients(clip):
    model = network()
    expected = sum(
        gradient * min(1, clip / gradient.norm()) for gradient in (own_gradient(model, r) for r in records())
    )
    assert torch.allclose(flat(clipped_sum(model, squared(model), records(), clip)), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_record_whose_gradient_is_not_finite_counts_as_nothing(bad):
    model = network()
    damaged = records()
    damaged[2] = torch.full_like(damaged[2], 1.0)
    damaged[2][0, 0, 0, 0] = bad

    def loss(record):  # 1e30 has a finite loss whose gradient has no finite norm
        return (model(record) * record.abs().max() ** 0.9).mean()

    rest = [record for i, record in enumerate(damaged) if i != 2]
    assert torch.equal(flat(clipped_sum(model, loss, damaged, 1.0)), flat(clipped_sum(model, loss, rest, 1.0)))


def test_a_record_without_a_loss_counts_as_nothing():
    model = network()
    assert not flat(clipped_sum(model, lambda record: None, records(), 1.0)).any()
    assert not flat(clipped_sum(model, lambda record: torch.zeros(()), records(), 1.0)).any()


def test_the_sum_is_divided_by_a_constant_not_by_the_number_drawn():
    model = network()
    for drawn in (records(2), records(5)):
        expected = flat(clipped_sum(model, squared(model), drawn, 0.1)) / 7
        private_gradient(
            model,
            squared(model),
            drawn,
            clip=0.1,
            noise_multiplier=1e-12,
            expected=7,
            randomness=Randomness(),
        )
        assert torch.allclose(flat(p.grad for p in model.parameters()), expected)


def test_frozen_parameters_take_no_part():
    model = network()
    model[0].requires_grad_(False)
    assert len(clipped_sum(model, squared(model), records(), 1.0)) == len(trained(model)) == 4


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(1), nn.BatchNorm2d(1, track_running_stats=False).eval()], ids=["training", "no statistics"]
)
def test_batchnorm_that_would_look_at_the_records_is_refused(layer):
    model = nn.Sequential(layer, network())
    with pytest.raises(ValueError, match=r"0 .BatchNorm2d. takes its statistics from the records"):
        clipped_sum(model, squared(model), records(), 1.0)


def test_batchnorm_in_evaluation_mode_is_a_map_of_each_record():
    model = nn.Sequential(nn.BatchNorm2d(1), network()).eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert flat(clipped_sum(model, squared(model), records(), 1.0)).norm() > 0
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


class Counts(nn.Module):
    """Planted: a layer that remembers what it has seen."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += x.mean().detach()
        return x


def test_a_buffer_that_changes_is_caught():
    model = nn.Sequential(Counts(), network())
    with pytest.raises(RuntimeError, match="buffer"):
        clipped_sum(model, squared(model), records(), 1.0)


@pytest.mark.parametrize("clip", [1e-3, 0.3, 1e4])
def test_what_a_device_scales_is_what_the_cpu_adds(clip):
    for record in [*records(), torch.full((1, 1, 8, 8), torch.inf), torch.full((1, 1, 8, 8), torch.nan)]:
        gradient = torch.autograd.grad(squared(model := network())(record), list(model.parameters()))
        norm = torch.stack(torch._foreach_norm(gradient)).norm()
        expected = clipped_sum(model, squared(model), [record], clip)
        for one, other in zip(_scaled(gradient, norm, clip), expected, strict=True):
            torch.testing.assert_close(one, other)
        if norm.isfinite() and norm <= clip:
            assert all(torch.equal(a, b) for a, b in zip(_scaled(gradient, norm, clip), gradient, strict=True))
