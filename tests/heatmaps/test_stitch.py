import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_mil.heatmaps import assemble
from monai_mil.heatmaps.stitching import stitch
from tests.heatmaps.examples import frame


def slide(truth, tile, grid, kept=None, overlap=0):
    """Tiles cut from a map of tokens, at the rounded places of a slide-wide grid; ``overlap`` in tokens."""
    step = tile / grid
    rows, columns = ((side - overlap) // (grid - overlap) for side in truth.shape)
    index = np.array([(x, y) for y in range(rows) for x in range(columns)]) * (grid - overlap)
    index = index if kept is None else index[kept]
    blocks = [truth[y : y + grid, x : x + grid] for x, y in index.tolist()]
    size = tuple(int(np.ceil(side * step)) for side in truth.shape[::-1])
    return assemble(np.stack(blocks), np.floor(index * step + 0.5).astype(int), frame(size, tile))


def tokens(rows=42, columns=56, seed=0):
    return np.random.default_rng(seed).random((rows, columns), dtype=np.float32)


@pytest.mark.parametrize("tile", [512.0, 458.75, 57.3])
def test_tiles_come_back_as_the_map_they_were_cut_from(tile):
    truth = tokens()
    canvas = stitch(slide(truth, tile, 14))
    np.testing.assert_array_equal(canvas.values, truth)
    assert canvas.step == (tile / 14, tile / 14)
    assert canvas.origin == (0, 0)


def test_tokens_keep_their_place_wherever_the_first_tile_lies():
    truth = tokens()
    kept = np.array([6, 7, 11])
    canvas = stitch(slide(truth, 512.0, 14, kept))
    np.testing.assert_allclose(canvas.origin, (2 * 512, 512), atol=1e-9)
    assert canvas.values.shape == (28, 28)
    np.testing.assert_array_equal(canvas.values[:14], truth[14:28, 28:])
    np.testing.assert_array_equal(canvas.values[14:, 14:], truth[28:, 42:])
    assert np.isnan(canvas.values[14:, :14]).all()


def test_a_grid_that_begins_anywhere_keeps_its_beginning():
    heatmap = assemble(np.ones((6, 14, 14)), [[20 + 512 * i, 91] for i in range(6)], frame((4000, 800), 512.0))
    np.testing.assert_allclose(stitch(heatmap).origin, (20, 91), atol=1e-9)


def test_overlapping_tiles_take_the_maximum_or_the_mean():
    coords = [[0, 0], [50, 0]]
    heatmap = assemble([np.full((2, 2), 0.2), np.full((2, 2), 0.6)], coords, frame((1000, 800), 100.0))
    np.testing.assert_array_equal(stitch(heatmap).values, np.float32([[0.2, 0.6, 0.6]] * 2))
    np.testing.assert_allclose(stitch(heatmap, "mean").values, [[0.2, 0.4, 0.6]] * 2, rtol=1e-6)


def test_overlapping_tiles_cut_from_one_map_give_that_map():
    truth = tokens(14 + 7 * 3, 14 + 7 * 2)
    np.testing.assert_array_equal(stitch(slide(truth, 458.75, 14, overlap=7)).values, truth)


def test_a_tile_beside_the_lattice_moves_by_less_than_half_a_token():
    heatmap = assemble(np.ones((9, 2, 2)), [[100 * i, 0] for i in range(8)] + [[320, 310]], frame((1000, 800), 100.0))
    canvas = stitch(heatmap)
    rows, columns = np.nonzero(canvas.values == 1)
    assert canvas.origin == (0, 0)
    assert (rows.max(), columns[rows == rows.max()].min()) == (7, 6)


def test_tokens_outside_the_slide_are_left_out_but_whole_tiles_are_not():
    coords = [[-30, 0], [950, 750]]
    blocks = stitch(assemble(np.ones((2, 10, 10)), coords, frame((1000, 800), 100.0)))
    assert blocks.origin == (0, 0)
    assert blocks.values.shape == (80, 100)
    tiles = stitch(assemble([1.0, 1.0], coords, frame((1000, 800), 100.0)))
    assert np.count_nonzero(tiles.values == 1) == 2


@pytest.mark.parametrize("factor", [3, 4.7])
def test_upsampling_is_torch_s_bicubic_of_the_whole_canvas_clamped(factor):
    truth = (tokens() > 0.5).astype(np.float32)
    canvas = stitch(slide(truth, 14.0, 14))
    shape = tuple(int(side * factor) for side in truth.shape)
    image = torch.from_numpy(truth).double()[None, None]
    expected = torch.nn.functional.interpolate(image, shape, mode="bicubic", align_corners=False)[0, 0].numpy()
    assert expected.min() < -0.05, "the test needs an overshoot"
    drawn = canvas.upsample((0, 0, *truth.shape[::-1]), shape)
    np.testing.assert_allclose(drawn, expected.clip(0, 1), atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000))
def test_a_window_shows_its_part_of_the_whole_map(seed):
    rng = np.random.default_rng(seed)
    heatmap = slide(tokens(seed=seed), 51.2, 14, rng.random(12) > 0.4 if seed % 3 else None)
    canvas = stitch(heatmap)
    height, width = 140, 190
    whole = canvas.upsample((0, 0, width * 1.5, height * 1.5), (height, width))
    y0, y1 = sorted(rng.choice(height, 2, replace=False).tolist())
    x0, x1 = sorted(rng.choice(width, 2, replace=False).tolist())
    part = canvas.upsample((x0 * 1.5, y0 * 1.5, x1 * 1.5, y1 * 1.5), (y1 - y0, x1 - x0))
    np.testing.assert_allclose(part, whole[y0:y1, x0:x1], atol=1e-6)


def test_there_is_no_seam_between_tiles():
    ramp = np.add.outer(np.arange(42), np.arange(56)).astype(np.float32) / 100
    heatmap = slide(ramp, 140.0, 14)
    stitched = stitch(heatmap).upsample((0, 0, 560, 420), (420, 560))
    steps = np.diff(stitched, axis=1)[:, 29:-30].reshape(420, -1, 10)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:, :1], steps.shape), atol=1e-6)
    tile_by_tile = np.block(
        [[_alone(ramp[y : y + 14, x : x + 14]) for x in range(0, 56, 14)] for y in range(0, 42, 14)]
    )
    across = [abs(np.diff(image, axis=1)[:, 139::140]).mean() for image in (tile_by_tile, stitched)]
    assert across[0] > 5 * across[1]


def _alone(block):
    image = torch.from_numpy(block)[None, None]
    return torch.nn.functional.interpolate(image, (140, 140), mode="bilinear", align_corners=True)[0, 0].numpy()


def test_a_hole_has_no_value_and_its_border_is_not_pulled_down():
    heatmap = assemble(
        np.full((8, 4, 4), 0.75),
        [[x * 100, y * 100] for y in range(3) for x in range(3) if (x, y) != (1, 1)],
        frame((300, 300), 100.0),
    )
    drawn = stitch(heatmap).upsample((-100, -100, 400, 400), (500, 500))
    known = np.zeros((500, 500), bool)
    known[100:400, 100:400] = True
    known[200:300, 200:300] = False
    np.testing.assert_array_equal(~np.isnan(drawn), known)
    np.testing.assert_allclose(drawn[known], 0.75, rtol=1e-6)


def test_a_window_without_tokens_is_empty():
    canvas = stitch(slide(tokens(), 512.0, 14))
    assert np.isnan(canvas.upsample((5000, 9000, 6000, 9500), (10, 20))).all()
    assert np.isnan(canvas.upsample((-9000, -500, -8000, -400), (10, 20))).all()


def test_scores_beyond_one_keep_their_own_range():
    canvas = stitch(slide(10 * tokens() - 3, 28.0, 14))
    drawn = canvas.upsample((0, 0, 112, 84), (336, 448))
    assert canvas.limits == (pytest.approx(canvas.values.min()), pytest.approx(canvas.values.max()))
    assert (drawn.min(), drawn.max()) == canvas.limits


def test_a_coarse_picture_shows_means():
    truth = tokens(56, 56)
    canvas = stitch(slide(truth, 14.0, 14))
    drawn = canvas.upsample((0, 0, 56, 56), (14, 14))
    np.testing.assert_allclose(drawn, truth.reshape(14, 4, 14, 4).mean(axis=(1, 3)), atol=1e-6)


def test_one_score_a_tile_is_one_token():
    canvas = stitch(assemble([0.1, 0.9], [[0, 0], [100, 0]], frame()))
    np.testing.assert_array_equal(canvas.values, np.float32([[0.1, 0.9]]))
    assert canvas.step == (100.0, 100.0)


def test_a_window_costs_its_own_memory_whatever_the_slide_s_size():
    index = np.stack(np.meshgrid(np.arange(100), np.arange(100)), axis=-1).reshape(-1, 2)
    scores = np.random.default_rng(0).random((10_000, 14, 14), dtype=np.float32)
    tracemalloc.start()
    canvas = stitch(assemble(scores, index * 512, frame((51200, 51200), 512.0)))
    _, stitching = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    canvas.upsample((20_000, 20_000, 20_512, 20_512), (256, 256))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stitching < 2 * canvas.values.nbytes
    assert peak - before < 0.25 * canvas.values.nbytes
