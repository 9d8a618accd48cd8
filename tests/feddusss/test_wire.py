"""Tensors travel as one safetensors file in one array, and are copied as seldom as can be."""

from __future__ import annotations

import hashlib
import warnings

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from flwr.app import Array, ArrayRecord

from feddusss import wire

TENSORS = {
    "a.weight": torch.randn(3, 4),
    "a.rounded": torch.randn(5).bfloat16(),
    "a.num_batches_tracked": torch.tensor(3),
    "a.empty": torch.empty(0, 2),
}


def test_a_packed_record_is_what_flower_makes_of_a_safetensors_file():
    file = np.frombuffer(safetensors.torch.save(TENSORS), dtype=np.uint8)
    theirs, ours = ArrayRecord({wire.KEY: Array(file)}), wire.pack(TENSORS)
    assert ours[wire.KEY] == theirs[wire.KEY]
    assert bytes(wire.content(ours)) == file.tobytes()


@pytest.mark.parametrize("read", [wire.unpack, wire.views])
def test_what_was_packed_comes_out(read):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensors = read(wire.pack(TENSORS))
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_unpacked_tensors_are_written_to_without_a_change_of_the_record():
    record = wire.pack(TENSORS)
    before = bytes(record[wire.KEY].data)
    for tensor in wire.unpack(record).values():
        tensor.zero_()
    assert record[wire.KEY].data == before


def test_views_lie_in_the_record():
    record = wire.pack(TENSORS)
    data = np.frombuffer(record[wire.KEY].data, dtype=np.uint8)
    start, stop = data.ctypes.data, data.ctypes.data + len(data)
    assert all(start <= tensor.data_ptr() < stop for tensor in wire.views(record).values() if tensor.numel())


def test_contents_are_told_as_safetensors_tells_them():
    """The audit log holds them, tensor by tensor: not a letter of it may change."""
    record = wire.pack(TENSORS)
    theirs = {
        name: (str(entry["dtype"]), tuple(entry["shape"]), hashlib.sha256(bytes(entry["data"])).hexdigest())
        for name, entry in safetensors.deserialize(bytes(wire.content(record)))
    }
    ours = {
        name: (dtype, shape, hashlib.sha256(data).hexdigest())
        for name, (dtype, shape, data) in wire.contents(record).items()
    }
    assert ours == theirs


UNREADABLE = {
    "no array": ArrayRecord({}),
    "another name": ArrayRecord({"other": Array(np.zeros(8, np.uint8))}),
    "floats": ArrayRecord({wire.KEY: Array(np.zeros(8, np.float32))}),
    "two dimensions": ArrayRecord({wire.KEY: Array(np.zeros((2, 8), np.uint8))}),
    "no numpy": ArrayRecord({wire.KEY: Array("uint8", (8,), "other", bytes(200))}),
    "no head": ArrayRecord({wire.KEY: Array("uint8", (8,), "numpy.ndarray", bytes(200))}),
    "cut off": ArrayRecord({wire.KEY: Array("uint8", (8,), "numpy.ndarray", wire.pack(TENSORS)[wire.KEY].data[:-1])}),
    "too long": ArrayRecord(
        {wire.KEY: Array("uint8", (8,), "numpy.ndarray", wire.pack(TENSORS)[wire.KEY].data + b" ")}
    ),
    "no file": ArrayRecord({wire.KEY: Array(np.zeros(100, np.uint8))}),
}


@pytest.mark.parametrize("record", UNREADABLE.values(), ids=UNREADABLE.keys())
@pytest.mark.parametrize("read", [wire.unpack, wire.views, wire.contents])
def test_what_pack_did_not_make_is_refused(read, record):
    with pytest.raises(wire.Unreadable):
        read(record)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_number_that_is_not_finite_is_found_and_a_sum_that_overflows_is_no_such_number(dtype):
    largest = torch.finfo(dtype).max
    assert wire.is_finite(torch.full((5,), largest, dtype=dtype))
    assert wire.is_finite(torch.empty(0, dtype=dtype)) and wire.is_finite(torch.tensor(3))
    for wrong in ([float("nan")], [float("inf")], [float("inf"), -float("inf")]):
        assert not wire.is_finite(torch.tensor([1.0, *wrong, largest], dtype=dtype))
