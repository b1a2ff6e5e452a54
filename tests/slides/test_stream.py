from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch

from monai_mil.errors import SettingsError, SlideReadError
from monai_mil.slides import Slide, TileGrid, open_slide, segment_tissue, stored_tiles, stream_tiles, write_pyramid
from monai_mil.slides.plan import ReadPlan
from tests.conftest import shared
from tests.slides.conftest import overwrite_tile, textured


def by_regions(slide: Slide, grid: TileGrid) -> np.ndarray:
    """Every tile read by itself through ``Slide.read``, ``[n, s, s, 3]``."""
    plan = ReadPlan.of(slide, grid)
    tiles = [slide.read(x, y, plan.read_size, plan.level) for x, y in grid.coords]
    if plan.is_scaled:
        way = cv2.INTER_AREA if plan.averages else cv2.INTER_LINEAR
        tiles = [cv2.resize(tile, (grid.tile_size,) * 2, interpolation=way) for tile in tiles]
    return np.stack(tiles)


def streamed(slide: Slide, grid: TileGrid, **options: Any) -> np.ndarray:
    return torch.cat(list(stream_tiles(slide, grid, **options))).permute(0, 2, 3, 1).numpy()


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode-tiles")]


@pytest.mark.parametrize("tile_size", [256, 224, 100, 600])
@pytest.mark.parametrize("target_mpp", [0.5, 0.55, 1.0, 1.7, 4.0, 0.3])
@pytest.mark.parametrize("overlap", [0, 33])
def test_streamed_tiles_are_the_regions_slide_read_gives(
    jpeg_slide: Path, tile_size: int, target_mpp: float, overlap: int
) -> None:
    with open_slide(jpeg_slide) as slide:
        grid = TileGrid.cover(slide, None, tile_size=tile_size, target_mpp=target_mpp, overlap=overlap)
        np.testing.assert_array_equal(streamed(slide, grid, batch_size=5), by_regions(slide, grid))


@pytest.mark.parametrize(
    ("name", "mpp", "target"),
    [
        ("CMU-1-Small-Region.svs", None, 0.5),
        ("CMU-1-Small-Region_pyramid.tif", None, 1.0),
        ("TCGA-CR-7395-01A-01-TS1.svs", 0.5, 2.0),
        ("multiframe_camelyon_challenge_image.dcm", None, 30.0),
        ("wsi_jpeg.dcm", None, 16.783),
    ],
)
def test_real_slides_stream_the_regions_slide_read_gives(name: str, mpp: float | None, target: float) -> None:
    with open_slide(shared(f"data/wsi/{name}"), mpp=mpp) as slide:
        grid = TileGrid.cover(slide, segment_tissue(slide), tile_size=224, target_mpp=target)
        assert len(grid)
        np.testing.assert_array_equal(streamed(slide, grid), by_regions(slide, grid))


def test_batches_are_channels_last_in_grid_order_with_a_shorter_last_one(jpeg_slide: Path) -> None:
    with open_slide(jpeg_slide) as slide:
        grid = TileGrid.cover(slide, None)
        batches = list(stream_tiles(slide, grid, batch_size=7))
        assert len(grid) == 30
        assert [tuple(batch.shape) for batch in batches] == [(7, 3, 256, 256)] * 4 + [(2, 3, 256, 256)]
        assert all(batch.dtype == torch.uint8 for batch in batches)
        assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in batches)
        np.testing.assert_array_equal(
            torch.cat(batches).numpy(), by_regions(slide, grid).transpose(0, 3, 1, 2)
        )  # batches kept by the consumer are never overwritten


def test_memory_of_a_batch_is_used_again_once_it_is_dropped(jpeg_slide: Path) -> None:
    with open_slide(jpeg_slide) as slide:
        grid = TileGrid.cover(slide, None, tile_size=64, target_mpp=0.5)
        addresses = {batch.data_ptr() for batch in stream_tiles(slide, grid, batch_size=8, prefetch=2)}
        assert len(grid) > 50 * 8
        ahead = 4 * 24 // 8  # a row of stored tiles is decoded for four rows of 24 tiles
        assert len(addresses) <= 5 + ahead


def test_without_room_for_shared_tiles_the_pixels_are_the_same(
    jpeg_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_tiles, "_AHEAD_BYTES", 1)
    with open_slide(jpeg_slide) as slide:
        grid = TileGrid.cover(slide, None, tile_size=200, overlap=50)
        np.testing.assert_array_equal(streamed(slide, grid), by_regions(slide, grid))


@pytest.mark.parametrize(("tile_size", "target_mpp"), [(200, 0.5), (200, 0.55)])
def test_every_shared_tile_is_decoded_once_and_let_go(jpeg_slide: Path, tile_size: int, target_mpp: float) -> None:
    with open_slide(jpeg_slide) as slide:
        plan = ReadPlan.of(slide, TileGrid.cover(slide, None, tile_size=tile_size, target_mpp=target_mpp, overlap=50))
        assert slide.tiff is not None
        decoded: list[int] = []
        decode, slide.tiff.decode = slide.tiff.decode, lambda *call: (decoded.append(call[1]), decode(*call))
        decoder = stored_tiles.StoredTiles(slide.tiff, plan, 4)
        out = np.empty((len(plan), 200, 200, 3), np.uint8)
        for batch in range(-(-len(plan) // 4)):
            decoder.decode(decoder.decodings(batch), out.__getitem__)
        assert sorted(decoded) == list(range(30))
        assert not decoder._canvases._open


@pytest.mark.parametrize(("target_mpp", "reduction"), [(0.5, 1), (0.9, 1), (1.0, 2), (1.7, 2), (2.0, 4), (3.0, 4)])
def test_scaled_tiles_show_what_exact_ones_show(tmp_path: Path, target_mpp: float, reduction: int) -> None:
    """Of soft shapes a smaller transform gives nearly the mean of the pixels; shifted tiles differ by far more."""
    image = cv2.GaussianBlur(textured(1501, 1203), (0, 0), 6)
    write_pyramid(tmp_path / "a.tif", image, mpp=0.5, downsamples=(1,))
    with open_slide(tmp_path / "a.tif") as slide:
        grid = TileGrid.cover(slide, None, tile_size=100, target_mpp=target_mpp)
        assert ReadPlan.of(slide, grid, reduce=True).reduction == reduction
        assert ReadPlan.of(slide, grid).reduction == 1
        scaled, exact = (streamed(slide, grid, decoder=decoder).astype(int) for decoder in ("scaled", "exact"))
        inside = (exact != 255).any(axis=3).all(axis=(1, 2))
        assert np.abs(scaled - exact)[inside].mean() < (0 if reduction == 1 else 1.0) + 1e-9
        assert scaled.shape == exact.shape


def test_what_cannot_be_decoded_smaller_is_refused_and_not_read_otherwise(lossless_slide: Path) -> None:
    with open_slide(lossless_slide) as slide:
        coarse, fine = (TileGrid.cover(slide, None, tile_size=100, target_mpp=mpp) for mpp in (2.0, 0.5))
        with pytest.raises(SlideReadError, match=r"no JPEG that can be decoded at 1/2 .*'scaled'"):
            stream_tiles(slide, coarse, decoder="scaled")
        np.testing.assert_array_equal(streamed(slide, fine, decoder="scaled"), streamed(slide, fine))


def test_the_decoder_of_a_device_needs_one(jpeg_slide: Path) -> None:
    with open_slide(jpeg_slide) as slide, pytest.raises(SettingsError, match="not on 'cpu'"):
        next(stream_tiles(slide, TileGrid.cover(slide, None), decoder="cucim-device"))


def test_tiles_of_another_kind_in_a_level_keep_their_pixels(jpeg_slide: Path) -> None:
    """TurboJPEG takes the tiles that begin as the one it was tried on; any other goes to imagecodecs."""
    with open_slide(jpeg_slide) as slide:
        grid = TileGrid.cover(slide, None)
        expected = streamed(slide, grid)
        assert slide.tiff is not None
        plain = slide.tiff.plain_jpeg(0)
        assert plain is not None
        data, out = slide.tiff.encoded(0, 7), np.empty((256, 256, 3), np.uint8)
        assert plain.decode(data, out)
        commented = data[:2] + b"\xff\xfe\0\4ab" + data[2:]
        assert not plain.decode(commented, out)
        slide.tiff._plain[0] = None
        np.testing.assert_array_equal(streamed(slide, grid), expected)


def test_an_empty_grid_streams_nothing(jpeg_slide: Path) -> None:
    with open_slide(jpeg_slide) as slide:
        grid = TileGrid.cover(slide, None)
        empty = TileGrid(**{**vars(grid), "coords": grid.coords[:0]})
        assert list(stream_tiles(slide, empty)) == []


def test_a_tile_that_rounds_to_beyond_its_level_is_white(tmp_path: Path) -> None:
    """Column 1024 of 1025 lies nearest to pixel 256 of a level that is 256 px wide."""
    image = textured(1025, 700)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for step in (1, 4):
            level = np.ascontiguousarray(image[:700:step, : 1024 if step > 1 else None : step])
            tiff.write(level, tile=(128, 128), photometric="rgb", metadata=None, subfiletype=int(step > 1))
    with open_slide(tmp_path / "a.tif", mpp=0.25) as slide:
        grid = TileGrid.cover(slide, None, tile_size=64, target_mpp=1.0)
        plan = ReadPlan.of(slide, grid)
        assert (plan.level, plan.x.max(), slide.levels[1].width) == (1, 256, 256)
        tiles = streamed(slide, grid)
        assert (tiles[plan.x == 256] == 255).all()
        np.testing.assert_array_equal(tiles, by_regions(slide, grid))


def test_a_slide_closed_too_early_is_an_error_not_another_file_s_pixels(jpeg_slide: Path) -> None:
    slide = open_slide(jpeg_slide)
    grid = TileGrid.cover(slide, None)
    slide.close()
    with open_slide(jpeg_slide), pytest.raises(ValueError, match="closed file"):
        list(stream_tiles(slide, grid))


def test_threads_end_when_the_consumer_stops_early(jpeg_slide: Path) -> None:
    with open_slide(jpeg_slide) as slide:
        grid = TileGrid.cover(slide, None, tile_size=64)
        stream = stream_tiles(slide, grid, batch_size=4)
        next(stream)
        assert decoding_threads()
        del stream
        gc.collect()
        assert not decoding_threads()


def test_threads_end_when_the_consumer_raises(jpeg_slide: Path) -> None:
    def consume(slide: Slide) -> None:
        for _ in stream_tiles(slide, TileGrid.cover(slide, None, tile_size=64), batch_size=4):
            raise RuntimeError("encoder failed")

    with open_slide(jpeg_slide) as slide:
        with pytest.raises(RuntimeError, match="encoder failed"):
            consume(slide)
        gc.collect()
        assert not decoding_threads()


@pytest.mark.parametrize("content", [None, b"\x55"], ids=["cut short", "overwritten"])
def test_a_damaged_tile_stops_the_stream_and_names_its_position(
    tmp_path: Path, jpeg_slide: Path, content: bytes | None
) -> None:
    path = overwrite_tile(jpeg_slide, tmp_path / "a.tif", 14, content)
    with open_slide(path) as slide:
        with pytest.raises(SlideReadError, match=r"slide '.*a.tif': the tile at level-0 position \(512, 512\)"):
            list(stream_tiles(slide, TileGrid.cover(slide, None), batch_size=4))
        gc.collect()
        assert not decoding_threads()


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"prefetch": -1}])
def test_impossible_options_are_refused_at_once(jpeg_slide: Path, options: dict[str, int]) -> None:
    with open_slide(jpeg_slide) as slide, pytest.raises(ValueError, match="at least"):
        stream_tiles(slide, TileGrid.cover(slide, None), **options)


def test_a_missing_library_is_not_called_a_damaged_file(jpeg_slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    with open_slide(jpeg_slide) as slide, pytest.raises(ImportError, match="simplejpeg"):
        slide.tiff.decode(0, 0, np.empty((256, 256, 3), np.uint8))
