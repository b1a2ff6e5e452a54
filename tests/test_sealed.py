"""HDF5 files that would keep HDF5 busy for ever, or crash it, are refused before it parses them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from monai_mil.bags import BagFile, BagInfo
from monai_mil.errors import DamagedBagError
from monai_mil.sealed import open_hdf5

HEAP = b"GCOL\1\0\0\0"


def bag(path: Path) -> tuple[bytes, np.ndarray]:
    features = np.arange(80.0).reshape(10, 8)
    BagFile.write(path, features, np.arange(20).reshape(10, 2), BagInfo("a", encoder="mine"))
    return path.read_bytes(), features


def test_a_byte_of_a_bag_that_is_another_one_anywhere_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    whole, _ = bag(path)
    seal = len(whole) - 32
    for place in (*range(0, seal, 131), *range(whole.find(HEAP), whole.find(HEAP) + 300, 7)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        with pytest.raises(DamagedBagError, match=r"a\.h5"), BagFile(path) as opened:
            opened.features()
    for place in range(seal, len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedBagError, match="not what was written"):
            BagFile(path)


@pytest.mark.parametrize(
    "behind",
    [
        lambda seal: b"0" * 17 + seal,  # it is no longer where a file ends
        lambda seal: seal + b"0",
        lambda seal: seal[:20],
        lambda seal: b"\0" * 2000 + seal + b"\0" * 2000,
    ],
    ids=["put in", "put behind", "cut off", "zeros"],
)
def test_a_seal_that_is_not_at_the_end_is_damage(tmp_path: Path, behind: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.h5"
    whole, _ = bag(path)
    path.write_bytes(whole[:-32] + behind(whole[-32:]))
    with pytest.raises(DamagedBagError, match="not what was written"):
        BagFile(path)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_what_other_programs_leave_behind_the_end_is_no_seal(tmp_path: Path, libver: str) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["features"] = np.ones((4, 2), np.float32)
        file["coords"] = np.zeros((4, 2), int)
        file.attrs["told"] = np.void(b"\x89mmSEAL\n")  # the bytes of the magic in the data of a file are none either
    for behind in (b"", b"\0" * 100, bytes(range(256)) * 40):
        content = path.read_bytes()
        path.write_bytes(content + behind)
        with open_hdf5(path) as file:
            assert file["features"].shape == (4, 2)


def test_a_bag_that_somebody_adds_to_is_read_without_its_seal(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    whole, features = bag(path)
    with h5py.File(path, "r+") as file:
        file["more"] = np.arange(10)
    assert whole[-32:-24] not in path.read_bytes()
    with BagFile(path) as opened:
        assert np.array_equal(opened.features(), features)
        assert opened.extras == ("more",)


@pytest.mark.parametrize("length", [0, 1 << 40, 2**64 - 16, 33])
def test_texts_in_which_hdf5_would_walk_for_ever_are_damage(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = np.ones((4, 2), np.float32), np.zeros((4, 2), int)
        file["features"].attrs["encoder"] = "uni"
    content = bytearray(path.read_bytes())
    free = content.find(HEAP) + 16 + 16 + 8  # behind the heap's header and its one object of three letters
    assert int.from_bytes(content[free : free + 2], "little") == 0
    with open_hdf5(path) as file:
        assert file["features"].attrs["encoder"] == "uni"
    content[free + 8 : free + 16] = length.to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(DamagedBagError, match="its texts are damaged"):
        BagFile(path)
