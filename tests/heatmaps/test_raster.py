import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_mil.heatmaps import Colouring, assemble, colour_table
from monai_mil.heatmaps.raster import cells
from tests.heatmaps.examples import frame, grid_heatmap


def reference(heatmap, shape, scale, overlap):
    """Every tile by itself: the pixels whose centres it holds, and all scores that a pixel has got."""
    tile = heatmap.frame.tile_size_level0
    blocks = heatmap.scores if heatmap.scores.ndim == 3 else heatmap.scores[:, None, None]
    y, x = ((np.arange(length) + 0.5) * scale for length in shape)
    found = np.full((len(blocks), *shape), np.nan)
    for (left, top), block, layer in zip(heatmap.coords, blocks, found, strict=True):
        rows, columns = (np.flatnonzero((at <= c) & (c < at + tile)) for at, c in ((top, y), (left, x)))
        cell_rows = ((y[rows] - top) * block.shape[0] / tile).astype(int)
        cell_columns = ((x[columns] - left) * block.shape[1] / tile).astype(int)
        layer[np.ix_(rows, columns)] = block[np.ix_(cell_rows, cell_columns)]
    some = ~np.isnan(found).all(axis=0)
    canvas = np.full(shape, np.nan, np.float32)
    canvas[some] = (np.nanmax if overlap == "max" else np.nanmean)(found[:, some], axis=0)
    return canvas


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_pixel_shows_the_tiles_that_hold_its_centre(data):
    tile = data.draw(st.sampled_from([60.0, 77.3, 100.0]))
    regular = data.draw(st.booleans())
    step = data.draw(st.sampled_from([30.0, tile, 93.7]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    coords = np.round(rng.integers(0, 4, (9, 2)) * step) if regular else rng.integers(-40, 300, (9, 2))
    block = data.draw(st.sampled_from([(), (2, 2), (3, 1)]))
    overlap = data.draw(st.sampled_from(["max", "mean"]))
    heatmap = assemble(rng.random((9, *block), dtype=np.float32), coords, frame((331, 347), tile))
    scale = data.draw(st.sampled_from([7.0, 13.0, 16.0]))
    drawn = heatmap.raster(downsample=scale, overlap=overlap)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn, reference(heatmap, drawn.shape, scale, overlap), rtol=1e-5)


def test_canvas_max_covers_the_slide_exactly():
    heatmap = assemble([1.0], [[900, 700]], frame((1000, 800), 100.0))
    canvas = heatmap.raster(canvas_max=500)
    assert canvas.shape == (400, 500)
    assert np.isnan(canvas).sum() == canvas.size - 50 * 50
    assert (canvas[350:, 450:] == 1).all()


def test_tiles_smaller_than_a_pixel_are_not_lost():
    heatmap = grid_heatmap(30, 30, step=10.0, tile=10.0)
    canvas = heatmap.raster(downsample=64)
    assert np.nanmax(canvas) == heatmap.scores.max()
    assert not np.isnan(canvas[:4, :4]).any()


def test_tiles_over_the_border_are_cut_off():
    heatmap = assemble([1.0, 2.0], [[-50, -50], [950, 750]], frame((1000, 800), 100.0))
    canvas = heatmap.raster(downsample=10)
    assert (canvas[:5, :5] == 1).all()
    assert (canvas[-5:, -5:] == 2).all()
    assert np.isnan(canvas).sum() == canvas.size - 50


def test_colours_are_those_of_the_scores_and_the_rest_is_outside():
    heatmap = grid_heatmap()
    colouring = Colouring(colour_table("viridis"), (0, 100), outside=(1, 2, 3))
    values = heatmap.raster(downsample=9, percentile=True)
    drawn = heatmap.raster(downsample=9, percentile=True, colours=colouring)
    np.testing.assert_array_equal(drawn, colouring(values))
    assert (drawn[np.isnan(values)] == (1, 2, 3)).all()
    assert (drawn[values == 100] == colour_table("viridis")[-1]).all()


@pytest.mark.parametrize("arguments", [{}, {"canvas_max": 10, "downsample": 2}, {"downsample": 0}])
def test_the_canvas_must_be_said_once(arguments):
    with pytest.raises(ValueError, match="downsample"):
        grid_heatmap().raster(**arguments)


def test_an_unknown_colour_map_is_named():
    with pytest.raises(ValueError, match="unknown colour map 'jet'; choose one of viridis"):
        colour_table("jet")


def test_rounded_coordinates_of_a_fractional_grid_leave_no_gaps():
    heatmap = grid_heatmap(7, 5, step=51.43, tile=51.43)
    partition = cells(heatmap.coords, heatmap.scores, 51.43)
    assert partition.values.shape == (5, 7)
    np.testing.assert_array_equal(partition.values.ravel(), heatmap.scores)
