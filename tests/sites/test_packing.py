"""A pack is whole, or it is made anew."""

from __future__ import annotations

import numpy as np

from sites.packing import load_or_build


def build(builder):
    array = builder.add_array("numbers", (3,))
    array.append(np.array([[1, 2, 3]], np.uint8))
    builder.index["n"] = 1


def test_half_a_pack_under_its_name_is_made_anew(tmp_path):
    half = tmp_path / "digest"
    half.mkdir()
    (half / "numbers.npy").write_bytes(b"cut off")
    pack = load_or_build(tmp_path, "digest", build)
    assert pack.arrays["numbers"].tolist() == [[1, 2, 3]] and pack.index == {"n": 1}
