"""Small pieces by runs, against an image of labels."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monai_mil.slides.pieces import without_small_pieces


def by_labels(mask: np.ndarray, min_area: float, connectivity: int) -> np.ndarray:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4 * connectivity)
    large = stats[:, cv2.CC_STAT_AREA] >= min_area
    large[0] = False
    return large[labels]


@settings(max_examples=200)
@given(
    mask=hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)),
    min_area=st.integers(0, 20),
    connectivity=st.sampled_from([1, 2]),
)
def test_what_stays_is_what_an_image_of_labels_says(mask: np.ndarray, min_area: int, connectivity: int) -> None:
    before = mask.copy()
    kept = without_small_pieces(mask, min_area, connectivity)
    np.testing.assert_array_equal(kept, by_labels(mask, min_area, connectivity))
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("share", [0.4, 0.59, 0.7])
def test_a_mask_of_many_pieces(share: float) -> None:
    mask = np.random.default_rng(0).random((300, 500)) < share
    for connectivity in (1, 2):
        kept = without_small_pieces(mask, 40, connectivity)
        np.testing.assert_array_equal(kept, by_labels(mask, 40, connectivity))
        assert 0 < kept.sum() < mask.sum() or (share, connectivity) == (0.4, 1)


def test_a_piece_does_not_go_round_the_edge_of_the_mask() -> None:
    mask = np.zeros((2, 4), bool)
    mask[0, -1] = mask[1, 0] = True
    assert not without_small_pieces(mask, 2, connectivity=2).any()
