"""Streaming Dice against the same figures from whole arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from monai_mil.heatmaps import assemble, dice_counts, slide_dice, stitch
from monai_mil.metrics import DiceCounts
from monai_mil.slides import BlockGrid, find_lesions
from monai_mil.slides.truth import ArrayTruth
from tests.heatmaps.examples import frame

SIZE = (700, 520)


def heatmap(seed=0, tokens=(4, 5), share=0.7):
    """Tiles of a grid that leaves holes, scored in patches; the truth below reaches beyond them."""
    rng = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(np.arange(7), np.arange(5)), axis=-1).reshape(-1, 2)
    corners = corners[rng.random(len(corners)) < share] * 100
    scores = rng.random((len(corners), *tokens), dtype=np.float32) ** 3
    return assemble(scores, corners, frame(SIZE, 100.0))


def truth_mask(seed=1):
    rng = np.random.default_rng(seed)
    return ndimage.gaussian_filter(rng.standard_normal((SIZE[1], SIZE[0])), 12) > 0.03


def dense(canvas, threshold, grid, truth, margin):
    """All arrays whole."""
    (height, width), pixel = grid.shape, grid.pixel
    window = (0, 0, width * pixel, height * pixel)
    predicted = np.nan_to_num(canvas.upsample(window, grid.shape), nan=-np.inf) > threshold
    real = truth.window(*window, grid.shape)
    labels, _ = ndimage.label(real, np.ones((3, 3)))
    lesions = []
    for index, (y, x) in enumerate(ndimage.find_objects(labels), 1):
        crop = (
            slice(max(y.start - margin, 0), y.stop + margin),
            slice(max(x.start - margin, 0), x.stop + margin),
        )
        own = labels[crop] == index
        counted = predicted[crop] & (own | (labels[crop] == 0))
        lesions.append((tuple(np.argwhere(labels == index)[0]), count(counted, own)))
    return count(predicted, real), [counts for _, counts in sorted(lesions, key=lambda each: each[0])]


def count(predicted, real):
    return DiceCounts(int((predicted & real).sum()), int(predicted.sum()), int(real.sum()))


@pytest.mark.parametrize("pixel", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("block", [64, 150, 2048])
def test_streaming_dice_equals_dense_dice_for_slides_and_lesions(pixel, block):
    canvas, truth = stitch(heatmap()), ArrayTruth(Path("mask"), truth_mask(), 1)
    grid = BlockGrid(SIZE, pixel, block)
    lesions, margin = find_lesions(truth, grid), round(100 / pixel)
    found = slide_dice(canvas, 0.4, lesions, margin)
    whole, single = dense(canvas, 0.4, grid, truth, margin)
    assert found.whole == whole
    key = [(each.truth, each.predicted, each.intersection) for each in found.lesions]
    assert sorted(key) == sorted((each.truth, each.predicted, each.intersection) for each in single)
    assert [each.truth for each in found.lesions] == lesions.area.tolist()


def test_ground_truth_where_no_tile_lies_counts():
    covered = np.zeros((SIZE[1], SIZE[0]), bool)
    tiles = assemble(np.ones(1), [[100, 100]], frame(SIZE, 100.0))
    covered[100:200, 100:200] = True
    mask = covered.copy()
    mask[300:400, 500:600] = True
    grid = BlockGrid(SIZE, 1.0, 128)
    found = slide_dice(stitch(tiles), 0.5, find_lesions(ArrayTruth(Path("mask"), mask, 1), grid))
    assert found.whole == DiceCounts(10_000, 10_000, 20_000)
    assert found.lesions == (DiceCounts(10_000, 10_000, 10_000), DiceCounts(0, 0, 10_000))


def test_far_from_the_tiles_only_ground_truth_counts():
    size = (2000, 400)
    mask = np.zeros(size[::-1], bool)
    mask[0:100, 0:50] = mask[0:100, 1800:1900] = True
    canvas, truth = stitch(assemble(np.ones((1, 10, 10)), [[0, 0]], frame(size, 100.0))), ArrayTruth(Path("m"), mask, 1)
    grid = BlockGrid(size, 1.0, 128)
    found = slide_dice(canvas, 0.5, find_lesions(truth, grid))
    assert found.whole == DiceCounts(5_000, 10_000, 15_000)
    assert found.lesions == (DiceCounts(5_000, 5_000, 5_000), DiceCounts(0, 0, 10_000))
    assert dice_counts(canvas, np.array([0.5, 0.9, 1.0]), truth, grid).tolist() == [
        [5_000, 10_000, 15_000],
        [5_000, 10_000, 15_000],
        [0, 0, 15_000],
    ]


def test_other_lesions_in_a_crop_are_left_out():
    mask = np.zeros((SIZE[1], SIZE[0]), bool)
    mask[100:200, 100:200] = mask[100:200, 220:320] = True
    tiles = assemble(
        np.ones(35), np.stack(np.meshgrid(np.arange(7), np.arange(5)), -1).reshape(-1, 2) * 100, frame(SIZE)
    )
    lesions = find_lesions(ArrayTruth(Path("mask"), mask, 1), BlockGrid(SIZE, 1.0))
    found = slide_dice(stitch(tiles), 0.5, lesions, margin=50)
    crop = 200 * 200
    assert found.lesions[0] == DiceCounts(10_000, crop - 100 * 30, 10_000)


def test_many_thresholds_in_one_pass_are_as_one_by_one():
    canvas, truth = stitch(heatmap(3)), ArrayTruth(Path("mask"), truth_mask(4), 1)
    grid, thresholds = BlockGrid(SIZE, 1.0, 200), np.array([0.0, 0.05, 0.3, 0.7, 0.99, 1.0])
    lesions = find_lesions(truth, grid)
    for threshold, row in zip(thresholds, dice_counts(canvas, thresholds, truth, grid).tolist(), strict=True):
        assert DiceCounts(*row) == slide_dice(canvas, float(threshold), lesions).whole


def test_blocks_are_only_left_out_where_nothing_can_exceed_the_threshold():
    """The smooth map rises above the highest token beside it; what is skipped must not."""
    scores = np.zeros((1, 40, 40), np.float32)
    scores[0, 10:30, 10:30] = np.random.default_rng(0).integers(0, 2, (20, 20)) * 0.5
    canvas = stitch(assemble(scores, [[0, 0]], frame((400, 400), 400.0)))
    highest = float(canvas.upsample((0, 0, 400, 400), (400, 400)).max())
    assert highest > 0.5
    for threshold in (0.5, 0.5 * (highest + 0.5), highest):
        for block in (16, 400):
            lesions = find_lesions(
                ArrayTruth(Path("m"), np.zeros((400, 400), bool), 1), BlockGrid((400, 400), 1, block)
            )
            predicted = slide_dice(canvas, threshold, lesions).whole.predicted
            assert predicted == (canvas.upsample((0, 0, 400, 400), (400, 400)) > np.float32(threshold)).sum()
