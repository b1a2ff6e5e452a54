from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_mil.slides import TileGrid, TissueMask
from monai_mil.slides.plan import ReadPlan
from tests.slides.conftest import bare_slide

mpps = st.floats(0.2, 0.6)
sides = st.integers(300, 9000)


@pytest.mark.filterwarnings("ignore:.*are enlarged")
@given(mpp=mpps, target=st.sampled_from([0.25, 0.5, 1.0, 2.0]), width=sides, height=sides, rounding=st.booleans())
def test_field_of_view_is_exact_within_half_a_pixel_of_the_level_read(
    mpp: float, target: float, width: int, height: int, rounding: bool
) -> None:
    sizes = [((width + rounding * (f - 1)) // f, (height + rounding * (f - 1)) // f) for f in (1, 4, 16)]
    slide = bare_slide(sizes, mpp)
    grid = TileGrid.cover(slide, None, target_mpp=target)
    plan = ReadPlan.of(slide, grid)
    scale = slide.axis_downsamples(plan.level)
    assert grid.tile_size_level0 == pytest.approx(256 * target / mpp)
    for axis, corners in enumerate((plan.x, plan.y)):
        assert abs(plan.read_size[axis] - grid.tile_size_level0 / scale[axis]) <= 0.5
        assert np.abs(corners - grid.coords[:, axis] / scale[axis]).max() <= 0.5
    assert plan.level == 0 or min(plan.read_size) >= 256


def test_a_downsample_of_3_999_is_read_at_its_level_without_scaling() -> None:
    slide = bare_slide([(4095, 4095), (1024, 1024)], 0.25)
    plan = ReadPlan.of(slide, TileGrid.cover(slide, None, target_mpp=1.0))
    assert (plan.level, plan.read_size) == (1, (256, 256))


@given(mpp=mpps, width=sides, height=sides, overlap=st.integers(0, 128))
def test_the_grid_covers_every_pixel_and_no_tile_is_superfluous(
    mpp: float, width: int, height: int, overlap: int
) -> None:
    grid = TileGrid.cover(bare_slide([(width, height)], mpp), None, overlap=overlap)
    for axis, side in enumerate((width, height)):
        starts = np.unique(grid.coords[:, axis])
        assert starts[0] == 0
        assert starts[-1] + grid.tile_size_level0 >= side - 1
        if len(starts) > 1:
            assert starts[-2] + grid.tile_size_level0 < side + 1
            assert np.diff(starts).max() <= grid.tile_size_level0 + 1
    assert len(grid) == len(np.unique(grid.coords, axis=0))
    assert np.abs(grid.coords - grid.index * grid.step_level0).max() <= 0.5 + 1e-6


@given(seed=st.integers(0, 99), mpp=mpps, overlap=st.sampled_from([0, 64]))
def test_tissue_fraction_is_the_mean_of_the_mask_under_the_tile(seed: int, mpp: float, overlap: int) -> None:
    mask = np.random.default_rng(seed).random((40, 61)) > 0.5
    slide = bare_slide([(61 * 32, 40 * 32)], mpp)
    grid = TileGrid.cover(slide, TissueMask(mask, (32.0, 32.0), 0.1), overlap=overlap, min_tissue=0)
    pixels = np.kron(mask, np.ones((32, 32), np.float64))
    for (x, y), fraction in zip(grid.coords, grid.tissue_fraction, strict=True):
        side = round(grid.tile_size_level0)
        expected = pixels[y : y + side, x : x + side].sum() / side**2
        assert fraction == pytest.approx(expected, abs=0.02)


def test_tiles_with_enough_tissue_are_kept_in_row_major_order() -> None:
    mask = np.zeros((64, 64), bool)
    mask[10:40, 20:60] = True
    slide = bare_slide([(2048, 2048)], 0.5)
    tissue = TissueMask(mask, (32.0, 32.0), 0.1)
    everything = TileGrid.cover(slide, None)
    some = TileGrid.cover(slide, tissue, min_tissue=0.5)
    assert (some.tissue_fraction >= 0.5).all()
    assert 0 < len(some) < len(everything) == 64
    order = some.index[:, 1] * 1000 + some.index[:, 0]
    assert (np.diff(order) > 0).all()
    assert len(TileGrid.cover(slide, TissueMask(np.zeros_like(mask), (32.0, 32.0), 0.1), min_tissue=0)) == 0


def test_magnification_is_ten_over_mpp() -> None:
    slide = bare_slide([(4000, 4000)], 0.25)
    assert TileGrid.cover(slide, None, magnification=20).target_mpp == 0.5
    assert TileGrid.cover(slide, None).target_mpp == 0.5
    with pytest.raises(ValueError, match="not both"):
        TileGrid.cover(slide, None, magnification=20, target_mpp=0.5)


@pytest.mark.parametrize(
    "options",
    [
        {"overlap": 256},
        {"overlap": -1},
        {"tile_size": 0},
        {"target_mpp": -0.5},
        {"target_mpp": 0.0},
        {"target_mpp": np.inf},
        {"magnification": 0},
    ],
)
def test_impossible_grids_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="make no grid"):
        TileGrid.cover(bare_slide([(4000, 4000)], 0.25), None, **options)


def test_a_grid_of_another_slide_is_refused() -> None:
    grid = TileGrid.cover(bare_slide([(4000, 4000)], 0.5), None)
    with pytest.raises(ValueError, match="the grid belongs to a slide of"):
        ReadPlan.of(bare_slide([(4000, 3000)], 0.5), grid)


def test_enlarging_beyond_twice_is_told() -> None:
    slide = bare_slide([(900, 700)], 16.8)
    with pytest.warns(UserWarning, match="enlarged"):
        ReadPlan.of(slide, TileGrid.cover(slide, None))
