"""Rows of a slide that is not finished outlive a full disk, and nothing but whole batches is taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monai_mil.embedding.partial_rows import PartialRows, header_of, sums_of
from monai_mil.errors import BagError, OutputError
from tests.full_disk import full_after

ROWS = np.arange(40, dtype=np.float16).reshape(10, 4)


def opened(path: Path, **header: int) -> PartialRows:
    return PartialRows(path, {"encoder": 1, **header}, (10, 4), batch_size=2)


def test_rows_that_a_full_disk_took_in_part_are_encoded_again(tmp_path: Path) -> None:
    path = tmp_path / "a.rows"
    rows = opened(path)
    rows.append(ROWS[:4])
    message = r"a\.rows' cannot be written \(File too large\); free some space and run again"
    with full_after(4 * 8 + 13):
        with pytest.raises(OutputError, match=message):
            rows.append(ROWS[4:])
        with pytest.raises(OutputError, match=message):
            rows.close()
    again = opened(path)
    assert again.done == 4
    again.append(ROWS[4:])
    np.testing.assert_array_equal(again.read(), ROWS)
    again.close()


def test_rows_under_another_header_are_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "a.rows"
    rows = opened(path)
    rows.append(ROWS[:4])
    rows.close()
    assert opened(path, tile_size=256).done == 0
    assert path.stat().st_size == 0


@pytest.mark.parametrize(("at", "kept"), [(4 * 8 + 3, 4), (5, 0)])
def test_rows_of_which_a_power_cut_left_zeros_are_encoded_again(tmp_path: Path, at: int, kept: int) -> None:
    path = tmp_path / "a.rows"
    rows = opened(path)
    for start in (0, 4, 6):
        rows.append(ROWS[start : start + (4 if start == 0 else 2)] + 1)
    rows.close()
    with path.open("r+b") as file:
        file.truncate(at)
        file.truncate(8 * 8)
    again = opened(path)
    assert again.done == kept
    again.append(ROWS[kept:])
    np.testing.assert_array_equal(again.read()[kept:], ROWS[kept:])
    again.close()
    assert opened(path).done == 10


@pytest.mark.parametrize("damaged", [header_of, sums_of])
def test_what_stands_beside_the_rows_and_cannot_be_read_counts_as_not_there(tmp_path: Path, damaged: Any) -> None:
    path = tmp_path / "a.rows"
    rows = opened(path)
    rows.append(ROWS[:4])
    rows.close()
    damaged(path).write_bytes(b"\xff\0\xfe")
    assert opened(path).done == 0


def test_a_value_that_is_no_number_is_told_with_its_tile(tmp_path: Path) -> None:
    rows = opened(tmp_path / "a.rows")
    rows.append(ROWS[:2])
    bad = ROWS[2:4].copy()
    bad[1, 3] = np.inf
    with pytest.raises(BagError, match=r"a\.rows': the encoder gave NaN or values beyond 65504 for tile 3"):
        rows.append(bad)
    assert rows.done == 2


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.rows"
    opened(path).close()
    assert header_of(path).exists()
    path.unlink()
    path.mkdir()
    with pytest.raises(OutputError, match=r"a\.rows' cannot be written \(Is a directory\); check the folder"):
        opened(path)
