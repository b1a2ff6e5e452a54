"""The checksum that files carry is zlib's, whatever computes it."""

from __future__ import annotations

import sys
import zlib

import numpy as np
import pytest

from monai_mil import checksum


@pytest.mark.parametrize("imagecodecs_is_there", [True, False])
def test_the_checksum_is_zlib_s(monkeypatch: pytest.MonkeyPatch, imagecodecs_is_there: bool) -> None:
    checksum._fastest.cache_clear()
    if not imagecodecs_is_there:
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
    rows = np.random.default_rng(0).standard_normal((300, 70)).astype(np.float16)
    for content in (rows, rows.data, rows.tobytes(), b"", np.zeros((0, 4), np.float16)):
        assert checksum.crc32(content) == zlib.crc32(np.asarray(content).tobytes() if len(content) else b"")
    assert checksum.crc32(rows[100:], checksum.crc32(rows[:100])) == zlib.crc32(rows.tobytes())
    assert (checksum._fastest() is zlib.crc32) == (not imagecodecs_is_there)
    checksum._fastest.cache_clear()
