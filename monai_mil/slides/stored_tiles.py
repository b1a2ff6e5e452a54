"""Tiles of a plan from the file's own tiles: each stored tile decoded once and given at once to all that need it."""

from __future__ import annotations

import threading
from collections.abc import Callable

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
        decode: writes a stored tile of the plan's level into ``[tile_height, tile_width, 3]``.
    """

    def __init__(
        self, tiff: TiffPyramid, plan: ReadPlan, batch_size: int, decode: Callable[[int, np.ndarray], None] | None = None
    ) -> None:
        level = tiff.levels[plan.level]
        self._plan = plan
        self._columns = level.columns
        self._stored_shape = (level.tile_height, level.tile_width, 3)
        self._decode = decode or (lambda stored, out: tiff.decode(plan.level, stored, out))
        self._width = np.clip(plan.level_size[0] - plan.x, 0, plan.read_size[0])
        self._height = np.clip(plan.level_size[1] - plan.y, 0, plan.read_size[1])
        self._is_whole = (self._width == plan.read_size[0]) & (self._height == plan.read_size[1])
        self._factor = _whole_factors(plan)
        self._in_parts = self._scaled_in_parts()
        self._canvases = _Canvases(plan)

        tiles, stored = self._uses()
        order = np.lexsort((tiles, stored))
        self._tiles, self._stored = tiles[order], stored[order]
        self._canvases.parts = np.bincount(tiles, minlength=len(plan))
        batches = self._tiles // batch_size
        reach = _AHEAD_BYTES // (batch_size * plan.read_size[0] * plan.read_size[1] * 3)
        starts = _decodings(self._stored, batches, reach)
        ends = np.append(starts[1:], len(self._tiles))
        order = np.argsort(batches[starts], kind="stable")
        self._starts, self._ends = starts[order], ends[order]
        self._batch_of = batches[starts][order]
        self._batches = batches

    def decodings(self, batch: int) -> range:
        """The numbers of the stored tiles to decode for a batch that no earlier one has decoded."""
        first, last = np.searchsorted(self._batch_of, (batch, batch + 1))
        return range(first, last)

    def furthest_batch(self, decodings: range) -> int:
        """The last batch that gets pixels of these stored tiles."""
        return int(self._batches[self._ends[decodings.start : decodings.stop] - 1].max(initial=0))

    def blank(self, tiles: range, out: np.ndarray) -> None:
        """Make white what of a batch ``[b, s, s, 3]`` lies beyond the level, where nothing is scaled."""
        for slot in np.flatnonzero(~self._is_whole[tiles.start : tiles.stop]).tolist():
            width, height = self._inside(tiles[slot])
            if not self._plan.is_scaled or not (width and height):
                _blank(out[slot], width, height)

    def decode(self, decodings: range, out: Callable[[int], np.ndarray]) -> None:
        """Decode stored tiles and give their pixels to the tiles; ``out`` tells a tile's place, ``[s, s, 3]``."""
        scratch = pixel_buffer(self._stored_shape)
        for number in decodings:
            uses = range(self._starts[number], self._ends[number])
            stored = int(self._stored[uses.start])
            if len(uses) == 1 and self._is_stored_so(int(self._tiles[uses.start]), stored):
                self._decode(stored, out(int(self._tiles[uses.start])))
                continue
            self._decode(stored, scratch)
            for use in uses:
                self._give(scratch, stored, int(self._tiles[use]), out)

    def _give(self, pixels: np.ndarray, stored: int, tile: int, out: Callable[[int], np.ndarray]) -> None:
        """Copy what a tile needs of a stored one."""
        x, y = self._corner(stored)
        x, y = x - int(self._plan.x[tile]), y - int(self._plan.y[tile])
        width, height = self._inside(tile)
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + pixels.shape[1], width), min(y + pixels.shape[0], height)
        part = pixels[top - y : bottom - y, left - x : right - x]
        if not self._plan.is_scaled:
            out(tile)[top:bottom, left:right] = part
        elif self._in_parts[tile]:
            across, down = self._factor
            scale(part, out(tile)[top // down : bottom // down, left // across : right // across], self._plan)
        else:
            canvas = self._canvases.of(tile, width, height)
            canvas[top:bottom, left:right] = part
            if self._canvases.is_complete(tile):
                scale(canvas, out(tile), self._plan)
                self._canvases.give_back(tile)

    def _inside(self, tile: int) -> tuple[int, int]:
        return int(self._width[tile]), int(self._height[tile])

    def _corner(self, stored: int) -> tuple[int, int]:
        row, column = divmod(stored, self._columns)
        return column * self._stored_shape[1], row * self._stored_shape[0]

    def _is_stored_so(self, tile: int, stored: int) -> bool:
        """Whether a tile is a stored one."""
        plan = self._plan
        shape = (plan.tile_size, plan.tile_size, 3)
        corner = (int(plan.x[tile]), int(plan.y[tile]))
        is_same = shape == self._stored_shape and corner == self._corner(stored)
        return bool(is_same and self._is_whole[tile] and not plan.is_scaled)

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
    """The tiles that are scaled as a whole once all their parts are there."""

    def __init__(self, plan: ReadPlan) -> None:
        self.parts = np.zeros(len(plan), np.int64)
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
            self.parts[tile] -= 1
            return bool(self.parts[tile] == 0)

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
