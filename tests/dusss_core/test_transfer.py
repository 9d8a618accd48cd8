"""What is sent to a device arrives as it was, in one parcel; figures come back by name."""

from __future__ import annotations

import torch

from dusss_core.transfer import Figures, _packed, _unpacked, sent


def test_a_parcel_holds_every_tensor_in_its_type_and_shape():
    tensors = (
        torch.tensor([True, False, True]),
        torch.arange(7).reshape(7, 1),
        torch.rand(2, 3, 5).transpose(0, 2),
        torch.tensor([], dtype=torch.int64),
        torch.rand(3).half(),
        torch.tensor(2.5),
        torch.tensor([7, 255], dtype=torch.uint8),
        torch.rand(1, dtype=torch.float64),
    )
    there = _unpacked(_packed(tensors, pinned=False), tensors)
    for sent_, arrived in zip(tensors, there, strict=True):
        assert arrived.dtype == sent_.dtype and torch.equal(arrived, sent_)


def test_on_the_cpu_nothing_is_copied():
    tensors = torch.rand(3), torch.arange(4)
    assert all(a is b for a, b in zip(sent("cpu", *tensors), tensors, strict=True))


def test_figures_come_back_by_name_as_they_were():
    values = {"loss": torch.tensor(0.1, requires_grad=True), "none": 0.0, "other": torch.tensor(-3.0)}
    assert Figures(values).read() == {"loss": torch.tensor(0.1).item(), "none": 0.0, "other": -3.0}
    assert Figures({}).read() == {}
