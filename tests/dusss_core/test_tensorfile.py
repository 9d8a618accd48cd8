"""Files of tensors are those of the package safetensors, byte for byte; a damaged one is never read."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from dusss_core import tensorfile
from dusss_core.files import digest_of_tensors, read_tensors, write_tensors

TENSORS = {
    "b.weight": torch.arange(12.0).reshape(3, 4),
    "a.weight": torch.arange(6, dtype=torch.float64).reshape(2, 3),
    "a.rounded": torch.arange(5.0).bfloat16(),
    "a.half": torch.arange(5.0).half(),
    "counter": torch.tensor(7),
    "small": torch.tensor([-1, 2], dtype=torch.int8),
    "byte": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "short": torch.tensor([1, 2, 3], dtype=torch.int16),
    "flags": torch.tensor([True, False]),
    "nothing": torch.empty(0, 3),
}


def made(tensors=TENSORS, metadata=None) -> bytes:
    return b"".join(tensorfile.chunks(tensors, metadata))


@pytest.mark.parametrize("tensors", [TENSORS, {}, {"é": torch.ones(1)}], ids=["all types", "none", "a name"])
def test_the_bytes_are_those_of_safetensors(tensors):
    assert made(tensors) == safetensors.torch.save(tensors)
    assert len(made(tensors)) == tensorfile.size(tensors)


def test_texts_beside_the_tensors_are_read_by_safetensors(tmp_path):
    write_tensors(tmp_path / "t", TENSORS, {"round": "3", "phase": "segment"})
    tensors, texts = read_tensors(tmp_path / "t")
    assert texts == {"round": "3", "phase": "segment"}
    assert digest_of_tensors(tensors) == digest_of_tensors(TENSORS)


def test_a_tensor_that_lies_in_pieces_is_written_whole(tmp_path):
    tensors = {
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "last": torch.arange(48.0).reshape(2, 4, 3, 2).to(memory_format=torch.channels_last),
        "twice": TENSORS["b.weight"],
        "part": TENSORS["b.weight"][1],
        "trained": torch.ones(2, requires_grad=True),
    }
    write_tensors(tmp_path / "t", tensors)
    read, _ = read_tensors(tmp_path / "t")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_tensors_are_read_where_they_lie():
    file = bytearray(made())
    read = {name: part.tensor() for name, part in tensorfile.parts(memoryview(file)).items()}
    assert all(torch.equal(read[name], TENSORS[name]) and read[name].dtype == TENSORS[name].dtype for name in TENSORS)
    start = file.index(TENSORS["b.weight"].numpy().tobytes())
    file[start : start + 4] = torch.tensor(-5.0).numpy().tobytes()
    assert read["b.weight"][0, 0] == -5


def test_numbers_at_odd_places_are_read_too():
    """A foreign writer may begin them anywhere; torch may not."""
    text = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    file = bytearray(len(text).to_bytes(8, "little") + text + torch.tensor([1.5, 2.5]).numpy().tobytes())
    for shift in range(4):
        part = tensorfile.parts(memoryview(bytearray(shift) + file)[shift:])["a"]
        assert part.tensor().tolist() == [1.5, 2.5]


def head(**entries) -> bytes:
    return text_file(json.dumps(entries).encode())


def text_file(text: bytes, data: bytes = bytes(8)) -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def entry(start=0, stop=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


DAMAGED = {
    "empty": b"",
    "cut off": made()[:-1],
    "too long": made() + b"\0",
    "head longer than the file": (10**9).to_bytes(8, "little") + b"{}",
    "no JSON": text_file(b"{"),
    "no text": text_file(b"\xff\xfe"),
    "a list": text_file(b"[]"),
    "nested without end": text_file(b"[" * 100_000),
    "an entry that is a number": head(a=1),
    "no shape": head(a={"dtype": "F32", "data_offsets": [0, 8]}),
    "unknown type": head(a=entry(dtype="X")),
    "type that is a list": head(a=entry(dtype=["F32"])),
    "shape and bytes that differ": head(a=entry(shape=[3])),
    "a negative size": head(a=entry(shape=[-1, -2])),
    "a size with a fraction": head(a=entry(shape=[2.0])),
    "a size that is true": head(a=entry(shape=[2, True])),
    "bytes that are not there": head(a=entry(stop=16, shape=[4])),
    "bytes before the file": head(a=entry(start=-8, stop=0)),
    "bytes twice": head(a=entry(), b=entry()),
    "bytes left over": head(a=entry(stop=4, shape=[1])),
    "a hole": head(a=entry(start=4, stop=8, shape=[1])),
    "a name twice": text_file(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    ),
}


@pytest.mark.parametrize("file", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_file_that_is_not_whole_is_refused(file):
    with pytest.raises(ValueError):
        tensorfile.parts(file)


def test_a_type_without_a_name_is_refused():
    with pytest.raises(ValueError, match="complex128"):
        made({"a": torch.zeros(1, dtype=torch.complex128)})


def test_a_file_that_is_cut_anywhere_or_changed_in_its_head_is_refused_or_read_as_it_is():
    """No byte string makes it raise anything else, or read beyond its end."""
    file, draw = made(), torch.Generator().manual_seed(0)
    for _ in range(500):
        changed = bytearray(file)
        where = int(torch.randint(0, 400, (1,), generator=draw))
        changed[where] = int(torch.randint(0, 256, (1,), generator=draw))
        try:
            for part in tensorfile.parts(changed).values():
                part.tensor()
        except ValueError:
            pass
