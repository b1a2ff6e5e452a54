"""Tiles decoded on a CUDA device by cuCIM."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from monai_mil.errors import SettingsError, SlideReadError
from monai_mil.slides.decode import decode_batches
from monai_mil.slides.plan import ReadPlan
from monai_mil.slides.readers import CucimReader
from monai_mil.slides.slide import Slide
from monai_mil.slides.tiff import JPEG, pixel_buffer

# nvJPEG interpolates chroma differently from libjpeg-turbo, which single pixels of coloured texture show and means over
# chroma blocks hardly do; wrong pixels differ in both by far more.
_BLOCK = 8
_SAME_PICTURE = 3.0
_CANDIDATES = 16


def decoded_on_device(
    slide: Slide, plan: ReadPlan, *, batch_size: int, device: torch.device, prefetch: int
) -> Iterator[Tensor]:
    """Yield the tiles of ``plan`` as uint8 ``[b, 3, s, s]``, channels-last, in order, decoded on ``device`` by cuCIM.

    Raises:
        SettingsError: ``device`` is no CUDA device.
        SlideReadError: cuCIM does not decode the slide there; names it.
    """
    if device.type != "cuda":
        raise SettingsError(f"decoder 'cucim-device': decodes on an NVIDIA GPU, not on '{device}'; take device 'cuda'")
    if len(plan) and not decodes_on_gpu(slide, plan, device):
        raise SlideReadError(
            f"slide '{slide.path}': cuCIM does not decode its tiles on {device}; leave out the decoder 'cucim-device'"
        )
    return decode_on_device(slide, plan, batch_size=batch_size, device=device, prefetch=prefetch)


def decodes_on_gpu(slide: Slide, plan: ReadPlan, device: torch.device) -> bool:
    """Whether cuCIM decodes this slide on the device: JPEG tiles, and one that is not blank looks as on the CPU."""
    reader = slide.backend
    if not isinstance(reader, CucimReader) or reader.tiff.levels[plan.level].page.compression != JPEG:
        return False
    on_slide = np.flatnonzero((plan.x < plan.level_size[0]) & (plan.y < plan.level_size[1]))
    if not len(on_slide):
        return False
    plan, reference = _telling_tile(slide, plan, on_slide)
    try:
        first = next(decode_on_device(slide, plan, batch_size=1, device=device, prefetch=0))
    except (RuntimeError, ValueError) as error:
        warnings.warn(
            f"slide '{slide.path}': cuCIM cannot decode it on {device} ({error}); using the CPU", stacklevel=2
        )
        return False
    expected = torch.from_numpy(reference).permute(2, 0, 1)[None]
    if block_difference(first.cpu(), expected) > _SAME_PICTURE:
        warnings.warn(f"slide '{slide.path}': cuCIM decodes it wrongly on {device}; using the CPU", stacklevel=2)
        return False
    return True


def _telling_tile(slide: Slide, plan: ReadPlan, rows: np.ndarray) -> tuple[ReadPlan, np.ndarray]:
    """Of some of the plan's tiles the one that shows most, and its pixels by the CPU: glass looks right anyway."""
    some = rows[np.unique(np.linspace(0, len(rows) - 1, _CANDIDATES).astype(int))]
    plan = replace(plan, x=plan.x[some], y=plan.y[some])
    (tiles,) = decode_batches(slide, plan, batch_size=len(plan), prefetch=0, allocate=pixel_buffer)
    best = int(tiles.std(axis=(1, 2, 3)).argmax())
    return replace(plan, x=plan.x[best : best + 1], y=plan.y[best : best + 1]), tiles[best]


def block_difference(tiles: Tensor, expected: Tensor) -> float:
    """Mean absolute difference of two decodings ``[b, 3, s, s]``, each averaged over squares of 8 pixels."""
    block = min(_BLOCK, tiles.shape[-1])
    return float((F.avg_pool2d(tiles.float(), block) - F.avg_pool2d(expected.float(), block)).abs().mean())


def decode_on_device(
    slide: Slide, plan: ReadPlan, *, batch_size: int, device: torch.device, prefetch: int
) -> Iterator[Tensor]:
    """Let cuCIM read batches of locations straight into the device's memory, then pad and scale there."""
    reader = slide.backend
    assert isinstance(reader, CucimReader)
    # A tile beyond the level is painted white below; its place must still be one that can be read.
    width, height = plan.level_size
    corners = zip(np.minimum(plan.x, width - 1).tolist(), np.minimum(plan.y, height - 1).tolist(), strict=True)
    locations = [reader.locate(plan.level, x, y) for x, y in corners]
    scale = Scaler(plan, device) if plan.is_scaled else None
    regions = reader.image.read_region(
        locations,
        plan.read_size,
        plan.level,
        batch_size=batch_size,
        num_workers=min(8, os.cpu_count() or 1),
        prefetch_factor=max(1, prefetch),
        device=str(device),
    )
    batches = iter(regions)  # a single location gives a bare image instead of an iterator
    for tiles in plan.batches(batch_size):
        for tile in tiles:
            width, height = plan.inside(tile)
            if width and height:
                reader.tiff.check(plan.level, int(plan.x[tile]), int(plan.y[tile]), width, height)
        # cuCIM reuses the memory of a batch, and gives a batch of one without its first axis.
        pixels = _as_tensor(next(batches), device).clone().view(len(tiles), *plan.read_size[::-1], 3)
        for slot, tile in enumerate(tiles):
            width, height = plan.inside(tile)
            pixels[slot, height:] = 255
            pixels[slot, :, width:] = 255
        pixels = pixels.permute(0, 3, 1, 2)
        yield pixels if scale is None else scale(pixels)


class Scaler:
    """Scales tiles as the CPU does, as two matrix products: rows, then columns.

    Args:
        plan: tells the sizes, and whether to average areas or to interpolate.
        device: where the tiles are.
    """

    def __init__(self, plan: ReadPlan, device: torch.device) -> None:
        weights = _area_weights if plan.averages else _linear_weights
        width, height = plan.read_size
        self._rows = torch.from_numpy(weights(height, plan.tile_size)).to(device)
        self._columns = torch.from_numpy(weights(width, plan.tile_size)).to(device)

    def __call__(self, tiles: Tensor) -> Tensor:
        """Scale uint8 ``[b, 3, h, w]`` to ``[b, 3, s, s]``, channels-last."""
        scaled = self._rows @ tiles.float() @ self._columns.T
        return scaled.round_().clamp_(0, 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def _area_weights(source: int, target: int) -> np.ndarray:
    """Share of every source pixel in every target pixel, float32 ``[target, source]``."""
    edges = np.arange(target + 1) * (source / target)
    pixels = np.arange(source)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (covered.clip(0) * (target / source)).astype(np.float32)


def _linear_weights(source: int, target: int) -> np.ndarray:
    """Linear interpolation between pixel centres, float32 ``[target, source]``."""
    position = ((np.arange(target) + 0.5) * (source / target) - 0.5).clip(0, source - 1)
    return (1 - np.abs(position[:, None] - np.arange(source))).clip(0).astype(np.float32)


def _as_tensor(batch: Any, device: torch.device) -> Tensor:
    """A cuCIM batch as a tensor on cuCIM's own memory, through the array interface it offers for that memory."""
    on_gpu = hasattr(batch, "__cuda_array_interface__")
    return torch.as_tensor(batch if on_gpu else np.asarray(batch), device=device)
