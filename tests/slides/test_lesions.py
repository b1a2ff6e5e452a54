"""Lesions found block by block are those of the whole mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from monai_mil.slides import BlockGrid, find_lesions
from monai_mil.slides.truth import ArrayTruth

DIAGONALS = np.eye(64, dtype=bool) | np.eye(64, dtype=bool)[::-1]
SPIRAL = np.zeros((40, 40), bool)
for ring in range(0, 18, 4):
    SPIRAL[ring, ring : 40 - ring] = SPIRAL[ring : 40 - ring, 39 - ring] = SPIRAL[39 - ring, ring : 40 - ring] = True
    SPIRAL[ring + 4 : 40 - ring, ring] = SPIRAL[ring + 4, ring : ring + 5] = True


def reference(mask):
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    boxes = [(x.start, y.start, x.stop, y.stop) for y, x in ndimage.find_objects(labels)]
    return labels, np.bincount(labels.ravel(), minlength=count + 1)[1:], boxes


@pytest.mark.parametrize("block", [1, 3, 7, 16, 64])
@pytest.mark.parametrize(
    "mask",
    [np.random.default_rng(seed).random((45, 61)) < share for seed, share in ((0, 0.1), (1, 0.35), (2, 0.5))]
    + [DIAGONALS, SPIRAL, np.ones((20, 30), bool), np.zeros((20, 30), bool)],
)
def test_components_are_those_of_the_whole_mask_whatever_the_blocks(mask, block):
    height, width = mask.shape
    lesions = find_lesions(ArrayTruth(Path("mask"), mask, 1), BlockGrid((width, height), 1, block))
    labels, areas, boxes = reference(mask)
    assert len(lesions) == len(areas)
    assert sorted(zip(lesions.area.tolist(), map(tuple, lesions.box.tolist()), strict=True)) == sorted(
        zip(areas.tolist(), boxes, strict=True)
    )
    assert lesions.box[:, 1].tolist() == sorted(lesions.box[:, 1].tolist())
    found = np.zeros(mask.shape, int)
    for row in range(lesions.grid.blocks[0]):
        for column in range(lesions.grid.blocks[1]):
            x0, y0, x1, y1 = lesions.grid.box(row, column)
            found[y0:y1, x0:x1] = lesions.labels(row, column)
    pairs = np.unique(np.stack([labels.ravel(), found.ravel()]), axis=1)
    assert pairs.shape[1] == len(np.unique(labels))
    assert (np.bincount(found.ravel(), minlength=len(lesions) + 1)[1:] == lesions.area).all()


def test_pixels_may_be_of_any_size():
    mask = np.kron(np.random.default_rng(0).random((10, 12)) < 0.3, np.ones((8, 8), bool))
    truth = ArrayTruth(Path("mask"), mask, 1)
    fine, coarse = (find_lesions(truth, BlockGrid((96, 80), pixel, 16)) for pixel in (0.5, 8))
    assert (fine.area == 256 * coarse.area).all()
    assert (fine.box == 16 * coarse.box).all()
