"""The optimiser is torch's, to the bit, and imports no compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dusss_core.training.optimizer import AdamW


@pytest.mark.parametrize("fused", [True, False])
def test_it_moves_weights_as_torchs_does_also_after_its_state_was_read_back(fused):
    given = {"lr": 0.1, "weight_decay": 0.01, "fused": fused}
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 24).reshape(4, 6)) for _ in range(2)]
    optimizers = [kind([weight], **given) for kind, weight in zip((AdamW, torch.optim.AdamW), weights, strict=True)]
    for number in range(6):
        if number == 3:
            state = optimizers[0].state_dict()
            optimizers[0] = AdamW([weights[0]], **given)
            optimizers[0].load_state_dict(state)
        for weight, optimizer in zip(weights, optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)
            (weight**2 * (number + 1)).sum().backward()
            optimizer.step()
    assert torch.equal(*weights)
    assert not weights[0].isnan().any()


def test_a_step_makes_no_graph():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = AdamW([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    assert weight.is_leaf and weight.grad_fn is None


def test_training_imports_no_compiler():
    code = (
        "import sys, torch\n"
        "from dusss_core.training.optimizer import AdamW\n"
        "weight = torch.nn.Parameter(torch.ones(3)); optimizer = AdamW([weight], fused=True)\n"
        "weight.sum().backward(); optimizer.step(); optimizer.zero_grad()\n"
        "optimizer.load_state_dict(optimizer.state_dict())\n"
        "import dusss_core.training\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
