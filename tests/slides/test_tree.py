from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_mil.slides import (
    Slide,
    TileGrid,
    TileTree,
    TissueMask,
    child_coords,
    open_slide,
    segment_tissue,
    stream_tiles,
    write_pyramid,
)
from monai_mil.slides.decode import Regions, TileDecoder
from monai_mil.slides.gpu import decode_on_device, decodes_on_gpu
from monai_mil.slides.plan import ReadPlan
from monai_mil.slides.stored_tiles import StoredTiles
from tests.conftest import shared
from tests.slides.conftest import MPP, bare_slide

LEVELS = 3


def tissue_of(slide: Slide, seed: int = 0, cell: int = 32) -> TissueMask:
    """Random tissue in squares of about ``cell`` level-0 pixels."""
    columns, rows = (max(1, round(side / cell)) for side in slide.size)
    mask = np.random.default_rng(seed).random((rows, columns)) > 0.6
    return TissueMask(mask, (slide.size[0] / columns, slide.size[1] / rows), 0.1)


sides = st.integers(40, 3000)


@given(mpp=st.floats(0.2, 0.6), width=sides, height=sides, tile=st.sampled_from([16, 50]), seed=st.integers(0, 9))
def test_four_children_tile_their_parent_and_nothing_else(
    mpp: float, width: int, height: int, tile: int, seed: int
) -> None:
    slide = bare_slide([(width, height)], mpp)
    tree = TileTree.cover(slide, tissue_of(slide, seed), tile_size=tile, levels=LEVELS, min_tissue=0)
    assert len(tree) == sum(len(grid) for grid in tree.grids)
    for level, grid in zip((2, 1, 0), tree.grids, strict=True):
        assert grid.target_mpp == 0.5 * 2**level
        assert grid.tile_size == tile
        assert grid.step_level0 == grid.tile_size_level0 == pytest.approx(tile * grid.target_mpp / mpp)
        assert np.abs(grid.coords - grid.index * grid.step_level0).max(initial=0) <= 0.5 + 1e-6
    for coarse, fine in zip(tree.grids[:-1], tree.grids[1:], strict=True):
        assert len(fine) == 4 * len(coarse)
        assert fine.step_level0 * 2 == coarse.step_level0, "steps halve exactly"
        np.testing.assert_array_equal(child_coords(coarse.coords, coarse.step_level0), fine.coords)
        for row, (x, y) in enumerate(coarse.index.tolist()):
            expected = [(2 * x, 2 * y), (2 * x, 2 * y + 1), (2 * x + 1, 2 * y), (2 * x + 1, 2 * y + 1)]
            assert list(map(tuple, fine.index[4 * row : 4 * row + 4].tolist())) == expected
        corner = fine.coords.reshape(-1, 4, 2)[:, 0]
        np.testing.assert_array_equal(corner, coarse.coords)


@pytest.mark.parametrize(("width", "height"), [(1000, 700), (37, 2000), (30, 20), (128, 128)])
def test_the_children_cover_every_pixel_of_the_parents_once(width: int, height: int) -> None:
    slide = bare_slide([(width, height)], 0.37)
    tree = TileTree.cover(slide, tissue_of(slide, cell=9), tile_size=16, levels=LEVELS, min_tissue=0)
    side = max(width, height) + 100
    pixels = []
    for grid in tree.grids:
        painted = np.zeros((side, side), int)
        ends = np.floor((grid.index + 1) * grid.step_level0 + 0.5).astype(int)
        for (x, y), (right, bottom) in zip(grid.coords, ends, strict=True):
            painted[y:bottom, x:right] += 1
        pixels.append(painted)
    assert pixels[0].max() == 1
    np.testing.assert_array_equal(pixels[1], pixels[0])
    np.testing.assert_array_equal(pixels[2], pixels[0])


def test_the_coarsest_level_is_the_grid_of_its_mpp_column_by_column() -> None:
    slide = bare_slide([(3000, 2500)], 0.25)
    tissue = tissue_of(slide, cell=200)
    coarsest = TileTree.cover(slide, tissue, tile_size=64, levels=LEVELS, min_tissue=0.4).grids[0]
    plain = TileGrid.cover(slide, tissue, tile_size=64, target_mpp=2.0, min_tissue=0.4)
    assert 0 < len(plain) < len(TileGrid.cover(slide, None, tile_size=64, target_mpp=2.0))
    by_column = sorted(zip(plain.index.tolist(), plain.tissue_fraction.tolist(), strict=True))
    assert list(zip(coarsest.index.tolist(), coarsest.tissue_fraction.tolist(), strict=True)) == by_column


def test_tissue_and_validity_are_those_of_the_pixels_under_each_tile() -> None:
    slide = bare_slide([(640, 448)], 0.5)
    mask = np.random.default_rng(3).random((14, 20)) > 0.5
    tree = TileTree.cover(slide, TissueMask(mask, (32.0, 32.0), 0.1), tile_size=32, levels=4, min_tissue=0.01)
    tissue, on_slide = np.zeros((1024, 1024)), np.zeros((1024, 1024), bool)
    tissue[:448, :640] = np.kron(mask, np.ones((32, 32)))
    on_slide[:448, :640] = True
    assert any(not grid.inside.all() for grid in tree.grids)
    for grid in tree.grids:
        side = int(grid.tile_size_level0)
        for (x, y), fraction, inside in zip(grid.coords, grid.tissue_fraction, grid.inside, strict=True):
            assert fraction == pytest.approx(tissue[y : y + side, x : x + side].mean(), abs=1e-6)
            assert inside == on_slide[y : y + side, x : x + side].any()
    for coarse, fine in zip(tree.grids[:-1], tree.grids[1:], strict=True):
        np.testing.assert_allclose(fine.tissue_fraction.reshape(-1, 4).mean(axis=1), coarse.tissue_fraction, atol=1e-6)


def test_without_a_mask_all_that_lies_on_the_slide_is_tissue() -> None:
    tree = TileTree.cover(bare_slide([(100, 70)], 0.5), None, tile_size=32, levels=3)
    assert [len(grid) for grid in tree.grids] == [1, 4, 16]
    for grid in tree.grids:
        np.testing.assert_array_equal(grid.tissue_fraction, grid.inside)
    assert tree.grids[-1].inside.sum() == 4 * 3


def test_one_level_is_a_tree_and_none_is_not() -> None:
    slide = bare_slide([(500, 500)], 0.5)
    assert [len(grid) for grid in TileTree.cover(slide, None, levels=1).grids] == [4]
    with pytest.raises(ValueError, match="tree of 0 levels"):
        TileTree.cover(slide, None, levels=0)


def test_no_tissue_gives_empty_levels() -> None:
    slide = bare_slide([(500, 500)], 0.5)
    nothing = TissueMask(np.zeros((10, 10), bool), (50.0, 50.0), 0.1)
    assert [len(grid) for grid in TileTree.cover(slide, nothing).grids] == [0, 0, 0]


def test_a_large_slide_is_covered_in_seconds() -> None:
    slide = bare_slide([(290_000, 290_000)], 0.25)
    start = time.process_time()
    tree = TileTree.cover(slide, TissueMask(np.ones((9063, 9063), bool), (290_000 / 9063,) * 2, 0.1))
    assert [len(grid) for grid in tree.grids] == [20_164 * 4**level for level in range(3)]
    assert time.process_time() - start < 5


def decoded(decoder: TileDecoder, plan: ReadPlan) -> np.ndarray:
    tiles = np.zeros((len(plan), plan.tile_size, plan.tile_size, 3), np.uint8)
    decoder.blank(range(len(plan)), tiles)
    decoder.decode(decoder.decodings(0), tiles.__getitem__)
    return tiles


@pytest.mark.parametrize("target_mpp", [0.5, 0.6, 0.25])
def test_what_lies_beyond_the_slide_is_white_in_every_reader(jpeg_slide: Path, target_mpp: float) -> None:
    """1501 x 1203 px: the border tiles of the coarsest level have children wholly outside."""
    with open_slide(jpeg_slide) as slide:
        tree = TileTree.cover(slide, None, tile_size=224, target_mpp=target_mpp)
        outside = 0
        for grid in tree.grids:
            plan = ReadPlan.of(slide, grid)
            on_device = decode_on_device(slide, plan, batch_size=7, device=torch.device("cpu"), prefetch=2)
            by_cucim = torch.cat(list(on_device)).permute(0, 2, 3, 1).numpy()
            regions = decoded(Regions(slide, plan, len(plan)), plan)
            assert slide.tiff is not None
            stored = decoded(StoredTiles(slide.tiff, plan, len(plan)), plan)
            np.testing.assert_array_equal(stored, regions)
            assert np.abs(by_cucim.astype(int) - regions).max() <= (2 if plan.is_scaled else 0)
            for tiles in (regions, by_cucim):
                assert (tiles[~grid.inside] == 255).all()
                assert (tiles[grid.inside] != 255).any(axis=(1, 2, 3)).all()
            outside += int((~grid.inside).sum())
        assert outside


def test_tiles_beyond_the_slide_say_nothing_about_the_decoder(
    jpeg_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(jpeg_slide) as slide:
        finest = TileTree.cover(slide, None, tile_size=224).grids[-1]
        by_white = finest.take(np.argsort(finest.inside, kind="stable"))
        monkeypatch.setattr(slide.backend, "locate", lambda level, x, y: (x + 40, y))
        cpu = torch.device("cpu")
        with pytest.warns(UserWarning, match="decodes it wrongly"):
            assert not decodes_on_gpu(slide, ReadPlan.of(slide, by_white), cpu)
        assert not decodes_on_gpu(slide, ReadPlan.of(slide, finest.take(~finest.inside)), cpu)


def test_glass_says_nothing_about_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.full((1024, 1024, 3), 255, np.uint8)
    noise = np.random.default_rng(0).integers(0, 255, (26, 26, 3), dtype=np.uint8)
    pixels[300:716, 300:716] = np.kron(noise, np.ones((16, 16, 1), np.uint8))
    write_pyramid(tmp_path / "a.tif", pixels, mpp=MPP)
    with open_slide(tmp_path / "a.tif") as slide:
        finest = TileTree.cover(slide, None, tile_size=64, target_mpp=MPP).grids[-1]
        plan = ReadPlan.of(slide, finest)
        assert decodes_on_gpu(slide, plan, torch.device("cpu"))
        monkeypatch.setattr(slide.backend, "locate", lambda level, x, y: (x + 40, y))
        with pytest.warns(UserWarning, match="decodes it wrongly"):
            assert not decodes_on_gpu(slide, plan, torch.device("cpu"))


def test_openslide_s_black_beyond_the_slide_is_white_here() -> None:
    with open_slide(shared("data/wsi/wsi_jpeg.dcm")) as slide:
        assert slide.reader == "openslide"
        tree = TileTree.cover(slide, None, tile_size=32, target_mpp=slide.mpp, levels=3)
        for grid in tree.grids:
            tiles = torch.cat(list(stream_tiles(slide, grid))).numpy()
            assert (tiles[~grid.inside] == 255).all()
        assert not tree.grids[-1].inside.all()


def averaged(image: np.ndarray, grid: TileGrid) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the tiles of a grid of whole factors that lie on the image, and the means of its pixels under them."""
    side = round(grid.tile_size_level0)
    rows = np.flatnonzero((grid.coords + side <= image.shape[1::-1]).all(axis=1))
    shape = (grid.tile_size, side // grid.tile_size, grid.tile_size, side // grid.tile_size, 3)
    shown = [image[y : y + side, x : x + side].astype(np.float32) for x, y in grid.coords[rows]]
    return rows, np.stack([tile.reshape(shape).mean(axis=(1, 3)) for tile in shown])


@pytest.mark.parametrize(("downsamples", "levels"), [((1, 2, 8), [1, 1, 0]), ((1, 4, 16), [1, 0, 0]), ((1,), [0] * 3)])
def test_every_level_shows_the_image_averaged_to_its_mpp_whatever_the_pyramid(
    tmp_path: Path, image: np.ndarray, downsamples: tuple[int, ...], levels: list[int]
) -> None:
    write_pyramid(tmp_path / "a.tif", image, mpp=MPP, compression="lzw", downsamples=downsamples)
    with open_slide(tmp_path / "a.tif") as slide:
        tree = TileTree.cover(slide, None, tile_size=128, target_mpp=MPP, levels=3)
        assert [ReadPlan.of(slide, grid).level for grid in tree.grids] == levels
        for grid in tree.grids:
            rows, expected = averaged(image, grid)
            tiles = torch.cat(list(stream_tiles(slide, grid.take(rows)))).permute(0, 2, 3, 1).numpy()
            assert np.abs(tiles - expected).max() <= 1.5, "two roundings"


@pytest.mark.parametrize(
    ("name", "mpp"), [("TCGA-CR-7395-01A-01-TS1.svs", 0.25), ("CMU-1-Small-Region_pyramid.tif", None)]
)
def test_levels_of_real_slides_show_the_same_tissue(name: str, mpp: float | None) -> None:
    """The first has no pixel size and stores one level more, of 2.0005; the second four."""
    with open_slide(shared(f"data/wsi/{name}"), mpp=mpp) as slide:
        tree = TileTree.cover(slide, segment_tissue(slide), tile_size=128, target_mpp=slide.mpp, levels=3)
        plans = [ReadPlan.of(slide, grid) for grid in tree.grids]
        assert [plan.level for plan in plans] == [min(level, len(slide.levels) - 1) for level in (2, 1, 0)]
        level0 = slide.read(0, 0, slide.size)
        for grid in tree.grids:
            rows, expected = averaged(level0, grid)
            tiles = torch.cat(list(stream_tiles(slide, grid.take(rows)))).permute(0, 2, 3, 1).numpy()
            assert len(rows) > 8
            blocks = (tiles - expected).reshape(-1, 8, 16, 8, 16, 3).mean(axis=(2, 4))
            assert np.abs(blocks).mean() < 2.5, "stored levels have their own filter and JPEG"
