"""Decoding the tiles of a plan on the CPU, each stored tile once, ahead of whoever consumes them."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from monai_mil.slides.plan import ReadPlan
from monai_mil.slides.slide import Slide
from monai_mil.slides.tiff import TiffPyramid, paste, pixel_buffer

_SHARED_BYTES = 512 * 2**20
_MOST_TILES_PER_TASK = 16


class TileDecoder(Protocol):
    """Decodes single tiles of a plan; safe to call from several threads."""

    def decode(self, tile: int, out: np.ndarray) -> None:
        """Write tile number ``tile`` into ``out``, uint8 ``[s, s, 3]``, C-contiguous."""


def decode_batches(
    slide: Slide, plan: ReadPlan, *, batch_size: int, prefetch: int, allocate: Callable[[tuple[int, ...]], np.ndarray]
) -> Iterator[np.ndarray]:
    """Yield the tiles in order, decoded by a few threads at most ``prefetch`` batches ahead.

    Args:
        slide: the open slide; keep it open until the iterator is closed.
        plan: what to read.
        batch_size: ``b``; the last batch may be smaller.
        prefetch: batches decoded while the consumer works on one.
        allocate: makes the buffer ``[b, s, s, 3]`` of a batch; its memory is used again once the yielded array is
            gone (a tensor made from it keeps it, a NumPy slice of it does not).

    Raises:
        SlideReadError: a tile cannot be decoded; names the slide and the position.
    """
    decoder = tile_decoder(slide, plan)
    shape = (batch_size, plan.tile_size, plan.tile_size, 3)
    free: deque[np.ndarray] = deque()
    pending: deque[tuple[np.ndarray, list[Future[None]]]] = deque()
    threads = _threads()
    run = max(1, min(_MOST_TILES_PER_TASK, batch_size // threads))  # so that all of them work on each batch
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode-tiles")

    def finish() -> np.ndarray:
        buffer, tasks = pending.popleft()
        for task in tasks:
            task.result()
        return buffer

    try:
        for tiles in plan.batches(batch_size):
            whole = free.popleft() if free else allocate(shape)
            batch = whole[: len(tiles)]
            weakref.finalize(batch, free.append, whole).atexit = False
            tasks = [
                pool.submit(_decode_run, decoder, tiles[start : start + run], batch[start:])
                for start in range(0, len(tiles), run)
            ]
            pending.append((batch, tasks))
            del batch, tasks
            if len(pending) > prefetch:
                yield finish()
        while pending:
            yield finish()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def tile_decoder(slide: Slide, plan: ReadPlan) -> TileDecoder:
    """The fastest exact way to decode the tiles of ``plan``."""
    return RegionDecoder(slide, plan) if slide.tiff is None else StoredTileDecoder(slide.tiff, plan)


class RegionDecoder:
    """Reads each tile as a region of the slide."""

    def __init__(self, slide: Slide, plan: ReadPlan) -> None:
        self._slide = slide
        self._plan = plan

    def decode(self, tile: int, out: np.ndarray) -> None:
        """Write tile number ``tile`` into ``out``, uint8 ``[s, s, 3]``, C-contiguous."""
        plan = self._plan
        region = self._slide.read_level(int(plan.x[tile]), int(plan.y[tile]), plan.read_size, plan.level)
        if plan.is_scaled:
            _scale(region, out, plan)
        else:
            out[:] = region


class StoredTileDecoder:
    """Puts tiles together from the file's own tiles.

    A stored tile that several tiles of the grid need is decoded once and kept until the last of them has it; beyond
    512 MB of such tiles it is decoded again instead.
    """

    def __init__(self, tiff: TiffPyramid, plan: ReadPlan) -> None:
        self._tiff = tiff
        self._plan = plan
        level = tiff.levels[plan.level]
        self._stored_shape = (level.tile_height, level.tile_width, 3)
        self._uses = _count_uses(tiff, plan)
        self._is_shared = self._uses > 1
        self._most_shared = max(1, _SHARED_BYTES // (level.tile_height * level.tile_width * 3))
        self._shared: dict[int, _SharedTile] = {}
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()
        self._scratch = threading.local()

    def decode(self, tile: int, out: np.ndarray) -> None:
        """Write tile number ``tile`` into ``out``, uint8 ``[s, s, 3]``, C-contiguous."""
        plan, level = self._plan, self._plan.level
        x, y = int(plan.x[tile]), int(plan.y[tile])
        width, height = plan.inside(tile)
        if width < 1 or height < 1:  # the last pixels of level 0 may round to none of a coarser level
            out[:] = 255
            return
        canvas = self._buffer("canvas", (plan.read_size[1], plan.read_size[0], 3)) if plan.is_scaled else out
        stored_tiles = list(self._tiff.tiles_in(level, x, y, width, height))
        first, stored_x, stored_y = stored_tiles[0]
        fits = (stored_x, stored_y) == (x, y) and canvas.shape == self._stored_shape
        if fits and len(stored_tiles) == 1 and not self._is_shared[first]:
            self._tiff.decode(level, first, canvas)
        else:
            for stored, stored_x, stored_y in stored_tiles:
                self._paste(stored, canvas, stored_x - x, stored_y - y)
        canvas[height:] = 255
        canvas[:, width:] = 255
        if plan.is_scaled:
            _scale(canvas, out, plan)

    def _paste(self, stored: int, canvas: np.ndarray, x: int, y: int) -> None:
        shared = self._borrow(stored) if self._is_shared[stored] else None
        if shared is None:
            pixels = self._buffer("stored", self._stored_shape)
            self._tiff.decode(self._plan.level, stored, pixels)
            paste(pixels, canvas, x, y)
        else:
            with shared.lock:
                if not shared.is_decoded:
                    self._tiff.decode(self._plan.level, stored, shared.pixels)
                    shared.is_decoded = True
            paste(shared.pixels, canvas, x, y)
        if self._is_shared[stored]:
            self._give_back(stored)

    def _borrow(self, stored: int) -> _SharedTile | None:
        with self._lock:
            shared = self._shared.get(stored)
            if shared is None and len(self._shared) < self._most_shared:
                pixels = self._free.pop() if self._free else pixel_buffer(self._stored_shape)
                shared = self._shared[stored] = _SharedTile(pixels)
            return shared

    def _give_back(self, stored: int) -> None:
        with self._lock:
            self._uses[stored] -= 1
            if self._uses[stored] == 0 and stored in self._shared:
                self._free.append(self._shared.pop(stored).pixels)

    def _buffer(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Memory of this thread, the same at every call."""
        buffer = getattr(self._scratch, name, None)
        if buffer is None:
            buffer = pixel_buffer(shape)
            setattr(self._scratch, name, buffer)
        return buffer


class _SharedTile:
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.is_decoded = False
        self.lock = threading.Lock()


def _decode_run(decoder: TileDecoder, tiles: range, out: np.ndarray) -> None:
    for slot, tile in enumerate(tiles):
        decoder.decode(tile, out[slot])


def _count_uses(tiff: TiffPyramid, plan: ReadPlan) -> np.ndarray:
    """By how many tiles of the plan each stored tile is needed, int64 ``[stored tiles]``."""
    level = tiff.levels[plan.level]
    first_column, first_row = plan.x // level.tile_width, plan.y // level.tile_height
    last_column = (np.minimum(plan.x + plan.read_size[0], plan.level_size[0]) - 1) // level.tile_width
    last_row = (np.minimum(plan.y + plan.read_size[1], plan.level_size[1]) - 1) // level.tile_height
    uses = np.zeros(len(level.offsets), np.int64)
    for down in range(int((last_row - first_row).max(initial=-1)) + 1):
        for right in range(int((last_column - first_column).max(initial=-1)) + 1):
            row, column = first_row + down, first_column + right
            needed = (row <= last_row) & (column <= last_column)
            uses += np.bincount((row * level.columns + column)[needed], minlength=len(uses))
    return uses


def _scale(source: np.ndarray, out: np.ndarray, plan: ReadPlan) -> None:
    import cv2

    interpolation = cv2.INTER_AREA if plan.averages else cv2.INTER_LINEAR
    cv2.resize(source, (plan.tile_size, plan.tile_size), dst=out, interpolation=interpolation)


def _threads() -> int:
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
