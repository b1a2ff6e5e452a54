from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from monai_mil.encoders import Preprocessing
from monai_mil.encoders.preprocess import prepare
from monai_mil.errors import SlideReadError
from monai_mil.slides import TileGrid, TileTree, gpu, open_slide, segment_tissue, stream_tiles
from monai_mil.slides.copying import copied
from monai_mil.slides.gpu import block_difference, decode_on_device, decodes_on_gpu
from monai_mil.slides.plan import ReadPlan
from tests.slides.conftest import overwrite_tile

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("target_mpp", [0.5, 1.0, 1.7, 4.0, 0.3])
def test_cucim_s_batches_become_the_tiles_of_the_cpu(jpeg_slide: Path, batch_size: int, target_mpp: float) -> None:
    with open_slide(jpeg_slide) as slide:
        grid = TileGrid.cover(slide, None, target_mpp=target_mpp)
        plan = ReadPlan.of(slide, grid)
        batches = list(decode_on_device(slide, plan, batch_size=batch_size, device=CPU, prefetch=2))
        expected = torch.cat(list(stream_tiles(slide, grid)))
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    rounding = 2 if plan.is_scaled else 0
    assert (torch.cat(batches).int() - expected.int()).abs().max() <= rounding


def test_a_damaged_tile_is_an_error_there_too(tmp_path: Path, jpeg_slide: Path) -> None:
    with open_slide(overwrite_tile(jpeg_slide, tmp_path / "a.tif", 14)) as slide:
        plan = ReadPlan.of(slide, TileGrid.cover(slide, None))
        with pytest.raises(SlideReadError, match=r"\(512, 512\)"):
            list(decode_on_device(slide, plan, batch_size=4, device=CPU, prefetch=2))


def test_a_slide_is_decoded_where_its_first_tile_looks_right(
    jpeg_slide: Path, lossless_slide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_slide(lossless_slide) as slide:
        assert not decodes_on_gpu(slide, ReadPlan.of(slide, TileGrid.cover(slide, None)), CPU)
    with open_slide(jpeg_slide) as slide:
        plan = ReadPlan.of(slide, TileGrid.cover(slide, None))
        assert decodes_on_gpu(slide, plan, CPU)
        monkeypatch.setattr(slide.backend, "locate", lambda level, x, y: (x + 40, y))
        with pytest.warns(UserWarning, match="decodes it wrongly"):
            assert not decodes_on_gpu(slide, plan, CPU)


def test_chroma_interpolated_differently_is_the_same_picture(jpeg_slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*args, **kwargs):
        checks = torch.arange(256)[:, None] + torch.arange(256)
        for tiles in decode_on_device(*args, **kwargs):
            noise = torch.where(checks % 2 == 0, 9, -9) * torch.tensor([1, 0, -1])[:, None, None]
            yield (tiles + 30 * wrong + noise).clamp(0, 255).byte()

    monkeypatch.setattr(gpu, "decode_on_device", decode)
    with open_slide(jpeg_slide) as slide:
        plan = ReadPlan.of(slide, TileGrid.cover(slide, None))
        wrong = False
        assert decodes_on_gpu(slide, plan, CPU)
        wrong = True
        with pytest.warns(UserWarning, match="decodes it wrongly"):
            assert not decodes_on_gpu(slide, plan, CPU)


@needs_gpu
@pytest.mark.parametrize("target_mpp", [0.5, 1.0, 1.7])
def test_a_cuda_stream_shows_the_tiles_of_the_cpu(jpeg_slide: Path, lossless_slide: Path, target_mpp: float) -> None:
    for path, tolerance, decoder in ((jpeg_slide, 1.0, "cucim-device"), (lossless_slide, 0.6, "exact")):
        with open_slide(path) as slide:
            grid = TileGrid.cover(slide, None, target_mpp=target_mpp)
            on_gpu = torch.cat(list(stream_tiles(slide, grid, device="cuda", decoder=decoder)))
            on_cpu = torch.cat(list(stream_tiles(slide, grid)))
        assert on_gpu.is_cuda
        assert on_gpu.is_contiguous(memory_format=torch.channels_last)
        assert block_difference(on_gpu.cpu(), on_cpu) <= tolerance


@needs_gpu
def test_what_is_decoded_exactly_is_the_same_on_the_device_and_nobody_waits_for_it(jpeg_slide: Path) -> None:
    with open_slide(jpeg_slide) as slide:
        grid = TileGrid.cover(slide, None, tile_size=100)
        tiles = []
        for number, batch in enumerate(stream_tiles(slide, grid, batch_size=8, device="cuda")):
            tiles.append(batch)
            torch.cuda.set_sync_debug_mode("error" if number else "default")  # the first one sets the device up
        torch.cuda.set_sync_debug_mode("default")
        on_cpu = torch.cat(list(stream_tiles(slide, grid)))
    assert torch.equal(torch.cat(tiles).cpu(), on_cpu)


@needs_gpu
@pytest.mark.parametrize("settings", [Preprocessing(224), Preprocessing(224, resize=256, interpolation="bicubic")])
def test_tiles_are_prepared_there_without_waiting(settings: Preprocessing) -> None:
    tiles = torch.randint(0, 256, (4, 3, 300, 300), dtype=torch.uint8)
    on_gpu = tiles.cuda()
    prepare(on_gpu, settings)
    torch.cuda.set_sync_debug_mode("error")
    try:
        prepared = prepare(on_gpu, settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (prepared.cpu() - prepare(tiles, settings)).abs().max() <= 1.01 / 255 / min(settings.std)


def test_batches_pass_the_cpu_s_streams_as_they_are() -> None:
    batches = [np.full((2, 4, 4, 3), value, np.uint8) for value in range(4)]
    passed = list(copied(iter(batches), CPU, held=2))
    assert [tensor.data_ptr() for tensor in passed] == [batch.ctypes.data for batch in batches]


@needs_gpu
def test_a_cuda_stream_is_white_beyond_the_slide(jpeg_slide: Path, lossless_slide: Path) -> None:
    for path, decoder in ((jpeg_slide, "cucim-device"), (lossless_slide, "exact")):
        with open_slide(path) as slide:
            for grid in TileTree.cover(slide, None, tile_size=224).grids:
                tiles = torch.cat(list(stream_tiles(slide, grid, device="cuda", decoder=decoder))).cpu()
                assert (tiles[~grid.inside] == 255).all()
                on_cpu = torch.cat(list(stream_tiles(slide, grid)))
                assert block_difference(tiles, on_cpu) <= 1.0


@needs_gpu
def test_tissue_on_the_gpu_is_the_tissue_of_the_cpu(jpeg_slide: Path) -> None:
    pytest.importorskip("cupy", reason="the extra 'gpu' is not installed")
    with open_slide(jpeg_slide) as slide:
        np.testing.assert_array_equal(segment_tissue(slide, device="cuda").mask, segment_tissue(slide).mask)
