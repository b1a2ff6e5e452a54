"""Tiles of a plan from the file's own tiles: each stored tile decoded once and given at once to all that need it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import numpy as np

from monai_mil.slides.plan import ReadPlan
from monai_mil.slides.tiff import TiffPyramid, pixel_buffer

_AHEAD_BYTES = 512 * 2**20


class StoredTiles:
    """Puts the tiles of a plan together while the pixels of a stored tile are still in the processor's cache.

    A stored tile is decoded with the first batch that needs it and copied into every tile it is a part of, those of
    later batches too; beyond 512 MB of such batches it is decoded again instead.

    Args:
        tiff: the pyramid.
        plan: what to read.
        batch_size: tiles of a batch.
    """

    def __init__(self, tiff: TiffPyramid, plan: ReadPlan, batch_size: int) -> None:
        level = tiff.levels[plan.level]
        self._plan = plan
        self._columns = level.columns
        self._stored_shape = (level.tile_height // plan.reduction, level.tile_width // plan.reduction, 3)
        self._decode = partial(tiff.decode if plan.reduction == 1 else tiff.decode_reduced, plan.level)
        self._scratch = threading.local()
        self._width = np.clip(plan.level_size[0] - plan.x, 0, plan.read_size[0])
        self._height = np.clip(plan.level_size[1] - plan.y, 0, plan.read_size[1])
        self._is_whole = (self._width == plan.read_size[0]) & (self._height == plan.read_size[1])
        self._factor = _whole_factors(plan)
        self._in_parts = self._scaled_in_parts()

        tiles, stored = self._uses()
        self._canvases = _Canvases(plan, np.bincount(tiles, minlength=len(plan)))
        order = np.lexsort((tiles, stored))
        self._tiles, stored = tiles[order], stored[order]
        self._parts = self._cut(self._tiles, stored)
        self._batches = self._tiles // batch_size
        reach = _AHEAD_BYTES // (batch_size * plan.read_size[0] * plan.read_size[1] * 3)
        starts = _decodings(stored, self._batches, reach)
        ends = np.append(starts[1:], len(stored))
        order = np.argsort(self._batches[starts], kind="stable")
        self._starts, self._ends = starts[order], ends[order]
        self._stored, self._batch_of = stored[starts][order], self._batches[starts][order]
        self._is_tile = self._are_tiles()[self._starts] & (self._ends == self._starts + 1)

    def decodings(self, batch: int) -> range:
        """The numbers of the stored tiles to decode for a batch that no earlier one has decoded."""
        first, last = np.searchsorted(self._batch_of, (batch, batch + 1)).tolist()
        return range(first, last)

    def furthest_batch(self, decodings: range) -> int:
        """The last batch that gets pixels of these stored tiles."""
        return int(self._batches[self._ends[decodings.start : decodings.stop] - 1].max(initial=0))

    def blank(self, tiles: range, out: np.ndarray) -> None:
        """Make white what of a batch ``[b, s, s, 3]`` lies beyond the level, where nothing is scaled."""
        for slot in np.flatnonzero(~self._is_whole[tiles.start : tiles.stop]).tolist():
            width, height = int(self._width[tiles[slot]]), int(self._height[tiles[slot]])
            if not self._plan.is_scaled or not (width and height):
                _blank(out[slot], width, height)

    def decode(self, decodings: range, out: Callable[[int], np.ndarray]) -> None:
        """Decode stored tiles and give their pixels to the tiles; ``out`` tells a tile's place, ``[s, s, 3]``."""
        scratch = self._own_scratch()
        which = slice(decodings.start, decodings.stop)
        told = (self._stored[which], self._is_tile[which], self._starts[which], self._ends[which])
        for stored, is_tile, start, end in zip(*(each.tolist() for each in told), strict=True):
            tiles = self._tiles[start:end].tolist()
            if is_tile:
                self._decode(stored, out(tiles[0]))
                continue
            self._decode(stored, scratch)
            for tile, (x, y, left, top, right, bottom) in zip(tiles, self._parts[start:end].tolist(), strict=True):
                part = scratch[top - y : bottom - y, left - x : right - x]
                if self._plan.is_scaled:
                    self._scale(part, tile, left, top, out)
                else:
                    out(tile)[top:bottom, left:right] = part

    def _scale(self, part: np.ndarray, tile: int, x: int, y: int, out: Callable[[int], np.ndarray]) -> None:
        """Scale a part of a tile that belongs at ``(x, y)`` of what is read for it; or the whole tile with its last."""
        height, width, _ = part.shape
        if self._in_parts[tile]:
            across, down = self._factor
            x, y, width, height = x // across, y // down, width // across, height // down
            scale(part, out(tile)[y : y + height, x : x + width], self._plan)
            return
        canvas = self._canvases.of(tile, int(self._width[tile]), int(self._height[tile]))
        canvas[y : y + height, x : x + width] = part
        if self._canvases.is_complete(tile):
            scale(canvas, out(tile), self._plan)
            self._canvases.give_back(tile)

    def _own_scratch(self) -> np.ndarray:
        """Memory of this thread for one stored tile, the same at every call and so in its cache."""
        if not hasattr(self._scratch, "pixels"):
            self._scratch.pixels = pixel_buffer(self._stored_shape)
        pixels: np.ndarray = self._scratch.pixels
        return pixels

    def _cut(self, tiles: np.ndarray, stored: np.ndarray) -> np.ndarray:
        """Of each pair where the stored tile begins, ``x, y``, and which part of the tile it is, ``x0, y0, x1, y1``.

        In pixels of what is read for the tile, from its corner; int32 ``[u, 6]``.
        """
        height, width, _ = self._stored_shape
        row, column = np.divmod(stored, self._columns)
        x, y = column * width - self._plan.x[tiles], row * height - self._plan.y[tiles]
        right, bottom = np.minimum(x + width, self._width[tiles]), np.minimum(y + height, self._height[tiles])
        return np.stack([x, y, x.clip(0), y.clip(0), right, bottom], axis=1).astype(np.int32)

    def _are_tiles(self) -> np.ndarray:
        """Whether the stored tile of a pair is the tile, pixel by pixel; bool ``[u]``."""
        plan = self._plan
        if plan.is_scaled or (plan.tile_size, plan.tile_size, 3) != self._stored_shape:
            return np.zeros(len(self._tiles), bool)
        return self._is_whole[self._tiles] & (self._parts[:, :2] == 0).all(axis=1)

    def _scaled_in_parts(self) -> np.ndarray:
        """Whether no pixel of a scaled tile is of two stored ones, so that each may be scaled by itself."""
        across, down = self._factor
        if not across or self._stored_shape[1] % across or self._stored_shape[0] % down:
            return np.zeros(len(self._plan), bool)
        return self._is_whole & (self._plan.x % across == 0) & (self._plan.y % down == 0)

    def _uses(self) -> tuple[np.ndarray, np.ndarray]:
        """Every pair of a tile and a stored tile that it needs, int64 ``[u]`` each."""
        plan, (tile_height, tile_width, _) = self._plan, self._stored_shape
        seen = np.flatnonzero((self._width > 0) & (self._height > 0))
        first_column, first_row = plan.x[seen] // tile_width, plan.y[seen] // tile_height
        last_column = (plan.x[seen] + self._width[seen] - 1) // tile_width
        last_row = (plan.y[seen] + self._height[seen] - 1) // tile_height
        tiles, stored = [seen[:0]], [seen[:0]]
        for down in range(int((last_row - first_row).max(initial=-1)) + 1):
            for right in range(int((last_column - first_column).max(initial=-1)) + 1):
                row, column = first_row + down, first_column + right
                needed = (row <= last_row) & (column <= last_column)
                tiles.append(seen[needed])
                stored.append((row * self._columns + column)[needed])
        return np.concatenate(tiles), np.concatenate(stored)


class _Canvases:
    """The tiles that are scaled as a whole once all their ``parts``, so many each, are there."""

    def __init__(self, plan: ReadPlan, parts: np.ndarray) -> None:
        self._missing = parts
        self._shape = (plan.read_size[1], plan.read_size[0], 3)
        self._open: dict[int, np.ndarray] = {}
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    def of(self, tile: int, width: int, height: int) -> np.ndarray:
        """The canvas of a tile, white beyond its width and height inside the level."""
        with self._lock:
            canvas = self._open.get(tile)
            if canvas is None:
                canvas = self._open[tile] = self._free.pop() if self._free else pixel_buffer(self._shape)
                _blank(canvas, width, height)
            return canvas

    def is_complete(self, tile: int) -> bool:
        """Count one more part of a tile; whether it was the last."""
        with self._lock:
            self._missing[tile] -= 1
            return bool(self._missing[tile] == 0)

    def give_back(self, tile: int) -> None:
        """Let another tile have the memory."""
        with self._lock:
            self._free.append(self._open.pop(tile))


def scale(source: np.ndarray, out: np.ndarray, plan: ReadPlan) -> None:
    """Scale pixels ``[h, w, 3]`` into ``out`` as the plan has it."""
    import cv2

    interpolation = cv2.INTER_AREA if plan.averages else cv2.INTER_LINEAR
    cv2.resize(source, out.shape[1::-1], dst=out, interpolation=interpolation)


def _blank(pixels: np.ndarray, width: int, height: int) -> None:
    pixels[height:] = 255
    pixels[:, width:] = 255


def _whole_factors(plan: ReadPlan) -> tuple[int, int]:
    """By how much areas are averaged along x and y; zeros where not by whole numbers, or nothing is."""
    across, down = (side // plan.tile_size for side in plan.read_size)
    is_whole = plan.averages and plan.read_size == (across * plan.tile_size, down * plan.tile_size)
    return (across, down) if is_whole else (0, 0)


def _decodings(stored: np.ndarray, batches: np.ndarray, reach: int) -> np.ndarray:
    """Where the uses of each decoding start, of pairs in the order of stored tiles and, for each, of batches.

    One for a stored tile, and another where a batch is more than ``reach`` later than that of the one before.
    """
    is_first = np.diff(stored, prepend=-1) != 0
    while True:
        starts = np.flatnonzero(is_first)
        begun = batches[starts][np.cumsum(is_first) - 1] if len(starts) else batches
        late = batches > begun + reach
        if not late.any():
            return starts
        is_first |= late & ~np.append(False, late[:-1])
