"""Tiles of a slide as a stream of tensors."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from monai_mil.slides.decode import decode_batches
from monai_mil.slides.grid import TileGrid
from monai_mil.slides.plan import ReadPlan
from monai_mil.slides.slide import Slide
from monai_mil.slides.tiff import pixel_buffer


def stream_tiles(
    slide: Slide, grid: TileGrid, *, batch_size: int = 64, device: str | torch.device = "cpu", prefetch: int = 2
) -> Generator[Tensor, None, None]:
    """Yield the pixels of every tile of ``grid``, in grid order, decoded ahead of the consumer in bounded memory.

    On the CPU each stored tile of the file is decoded once. On a CUDA device JPEG slides are decoded there
    (cuCIM with nvImageCodec); other slides are decoded on the CPU and copied from pinned memory.

    Args:
        slide: the open slide.
        grid: the tiles to read, ``n`` of them.
        batch_size: ``b``; the last batch may be smaller.
        device: where the tiles are wanted.
        prefetch: batches decoded while the consumer works on one.

    Yields:
        uint8 RGB ``[b, 3, s, s]`` in channels-last memory, white outside the slide.

    Raises:
        SlideReadError: a tile cannot be decoded; names the slide and the level-0 position.
    """
    if batch_size < 1 or prefetch < 0:
        raise ValueError(f"batch_size {batch_size} must be at least 1, prefetch {prefetch} at least 0")
    device = torch.device(device)
    plan = ReadPlan.of(slide, grid)
    if device.type == "cpu":
        return _on_cpu(slide, plan, batch_size, prefetch)
    from monai_mil.slides.gpu import stream_to_gpu

    return stream_to_gpu(slide, plan, batch_size=batch_size, device=device, prefetch=prefetch)


def _on_cpu(slide: Slide, plan: ReadPlan, batch_size: int, prefetch: int) -> Generator[Tensor, None, None]:
    for batch in decode_batches(slide, plan, batch_size=batch_size, prefetch=prefetch, allocate=pixel_buffer):
        yield torch.from_numpy(batch).permute(0, 3, 1, 2)
