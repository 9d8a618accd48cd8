"""torch's AdamW, without the compiler that its first use imports.

torch.optim keeps torch.compile out of its methods, and imports all of it for that when the first optimiser is made: a
second of processor time and 150 MB in each process. Here the same methods are taken as they are below that wrapper,
so the numbers are the same, and a step must not be compiled.
"""

from __future__ import annotations

import inspect

import torch


class AdamW(torch.optim.AdamW):
    """As `torch.optim.AdamW`, without `differentiable`."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
