"""Tiles of a slide as a stream of tensors."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial

import torch
from torch import Tensor

from monai_mil.slides.copying import copied, host_buffer
from monai_mil.slides.decode import decode_batches
from monai_mil.slides.decoder import Decoder
from monai_mil.slides.grid import TileGrid
from monai_mil.slides.plan import ReadPlan
from monai_mil.slides.slide import Slide


def stream_tiles(
    slide: Slide,
    grid: TileGrid,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    prefetch: int = 2,
    decoder: Decoder = "exact",
) -> Generator[Tensor, None, None]:
    """Yield the pixels of every tile of ``grid``, in grid order, decoded ahead of the consumer in bounded memory.

    Each stored tile of the file is decoded once, on the CPU; for a CUDA device tiles are copied from pinned memory
    beside the work that goes on there. Another ``decoder`` gives other pixels.

    Args:
        slide: the open slide.
        grid: the tiles to read, ``n`` of them.
        batch_size: ``b``; the last batch may be smaller.
        device: where the tiles are wanted.
        prefetch: batches decoded while the consumer works on one.
        decoder: ``"exact"``; ``"scaled"`` decodes JPEG tiles at 1/2 or 1/4 of their size where no more is wanted;
            ``"cucim-device"`` decodes on the CUDA device.

    Yields:
        uint8 RGB ``[b, 3, s, s]`` in channels-last memory, white outside the slide.

    Raises:
        SlideReadError: a tile cannot be decoded; names the slide and the level-0 position. Or ``decoder`` is not for
            this slide.
        SettingsError: ``"cucim-device"`` without a CUDA device.
    """
    if batch_size < 1 or prefetch < 0:
        raise ValueError(f"batch_size {batch_size} must be at least 1, prefetch {prefetch} at least 0")
    device = torch.device(device)
    plan = ReadPlan.of(slide, grid, reduce=decoder == "scaled")
    return _stream(slide, plan, batch_size, device, prefetch, decoder)


def _stream(
    slide: Slide, plan: ReadPlan, batch_size: int, device: torch.device, prefetch: int, decoder: Decoder
) -> Generator[Tensor, None, None]:
    if decoder == "cucim-device":
        from monai_mil.slides.gpu import decoded_on_device

        yield from decoded_on_device(slide, plan, batch_size=batch_size, device=device, prefetch=prefetch)
        return
    allocate = partial(host_buffer, device=device)
    batches = decode_batches(slide, plan, batch_size=batch_size, prefetch=prefetch, allocate=allocate)
    for pixels in copied(batches, device, held=prefetch):
        yield pixels.permute(0, 3, 1, 2)
        del pixels
