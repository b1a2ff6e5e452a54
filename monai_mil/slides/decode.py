"""Decoding the tiles of a plan on the CPU, each stored tile once, ahead of whoever consumes them."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from monai_mil.slides.plan import ReadPlan
from monai_mil.slides.slide import Slide
from monai_mil.slides.stored_tiles import StoredTiles, scale

_MOST_PER_TASK = 16


class TileDecoder(Protocol):
    """Decodes the tiles of a plan in pieces of work; safe to call from several threads."""

    def decodings(self, batch: int) -> range:
        """What is to be decoded for a batch once the batches before are decoded, by numbers."""

    def furthest_batch(self, decodings: range) -> int:
        """The last batch into which these write."""

    def blank(self, tiles: range, out: np.ndarray) -> None:
        """Write into a batch ``[b, s, s, 3]`` what no decoding writes."""

    def decode(self, decodings: range, out: Callable[[int], np.ndarray]) -> None:
        """Decode; ``out`` gives the place of tile ``i`` of the plan, uint8 ``[s, s, 3]``, C-contiguous."""


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
    decoder = tile_decoder(slide, plan, batch_size)
    batches = list(plan.batches(batch_size))
    shape = (batch_size, plan.tile_size, plan.tile_size, 3)
    free: deque[np.ndarray] = deque()
    begun: dict[int, np.ndarray] = {}
    pending: deque[tuple[int, list[Future[None]]]] = deque()
    threads = _threads()
    pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="decode-tiles")

    def begin(batch: int) -> None:
        whole = free.popleft() if free else allocate(shape)
        decoder.blank(batches[batch], whole)
        begun[batch] = whole

    def place(tile: int) -> np.ndarray:
        return begun[tile // batch_size][tile % batch_size]

    def finish() -> np.ndarray:
        number, tasks = pending.popleft()
        for task in tasks:
            task.result()
        whole = begun.pop(number)
        batch = whole[: len(batches[number])]
        weakref.finalize(batch, free.append, whole).atexit = False
        return batch

    try:
        for number in range(len(batches)):
            work = decoder.decodings(number)
            for batch in range(number, max(number, decoder.furthest_batch(work)) + 1):
                if batch not in begun:
                    begin(batch)
            run = max(1, min(_MOST_PER_TASK, len(work) // threads))  # so that all of them work on each batch
            runs = (work[start : start + run] for start in range(0, len(work), run))
            pending.append((number, [pool.submit(decoder.decode, part, place) for part in runs]))
            if len(pending) > prefetch:
                yield finish()
        while pending:
            yield finish()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def tile_decoder(slide: Slide, plan: ReadPlan, batch_size: int) -> TileDecoder:
    """The fastest exact way to decode the tiles of ``plan`` for batches of ``batch_size``."""
    return Regions(slide, plan, batch_size) if slide.tiff is None else StoredTiles(slide.tiff, plan, batch_size)


class Regions:
    """Reads each tile as a region of the slide; a decoding is a tile."""

    def __init__(self, slide: Slide, plan: ReadPlan, batch_size: int) -> None:
        self._slide = slide
        self._plan = plan
        self._batch_size = batch_size

    def decodings(self, batch: int) -> range:
        """The tiles of the batch."""
        start = batch * self._batch_size
        return range(start, min(start + self._batch_size, len(self._plan)))

    def furthest_batch(self, decodings: range) -> int:
        """The tiles' own."""
        return decodings.start // self._batch_size

    def blank(self, tiles: range, out: np.ndarray) -> None:
        """Nothing: a region is white beyond the slide."""

    def decode(self, decodings: range, out: Callable[[int], np.ndarray]) -> None:
        """Read the regions into their places."""
        plan = self._plan
        for tile in decodings:
            region = self._slide.read_level(int(plan.x[tile]), int(plan.y[tile]), plan.read_size, plan.level)
            if plan.is_scaled:
                scale(region, out(tile), plan)
            else:
                out(tile)[:] = region


def _threads() -> int:
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
