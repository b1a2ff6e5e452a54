"""Tissue masks of the user's own, as PNG of every kind."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from monai_mil.errors import AnnotationError
from monai_mil.slides.tissue_file import find_tissue_file, read_tissue
from tests.slides.conftest import bare_slide

TISSUE = np.zeros((30, 40), bool)
TISSUE[5:20, 10:30] = True
INK = (TISSUE * np.uint8(9))[..., None]
SEEN = np.full((30, 40, 1), 255, np.uint8)
SEEN[:, :20] = 0


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (INK, TISSUE),
        (INK * np.array([0, 1, 0], np.uint8), TISSUE),
        (np.dstack([INK, INK, INK, SEEN]), TISSUE & (SEEN[..., 0] > 0)),
        (INK.astype(np.uint16) * 256, TISSUE),
    ],
    ids=["grey", "green", "half of it transparent", "16 bits"],
)
def test_tissue_is_what_is_not_black_and_not_transparent(
    tmp_path: Path, pixels: np.ndarray, expected: np.ndarray
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    tissue = read_tissue(tmp_path / "a.png", bare_slide([(400, 300)], 0.5))
    np.testing.assert_array_equal(tissue.mask, expected)
    assert tissue.downsample == (10, 10)


@pytest.mark.parametrize("content", [b"", b"no PNG"])
def test_a_damaged_png_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(AnnotationError, match=r"tissue mask '.*a\.png': no PNG that can be read; write it again"):
        read_tissue(find_tissue_file(tmp_path, "a"), bare_slide([(400, 300)], 0.5))


def test_a_mask_that_is_not_there_is_told_with_the_names_it_could_have(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"slide 'a': no tissue mask in '.*'; name it 'a' and one of \.png, "):
        find_tissue_file(tmp_path, "a")
