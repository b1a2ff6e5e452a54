"""A case of several magnifications, packed as :mod:`monai_mil.networks.blocks.tree` says, taken apart for drawing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from monai_mil.errors import CohortError
from monai_mil.heatmaps import SlideFrame
from monai_mil.savers.case import Case


@dataclass(frozen=True, eq=False)
class LevelTiles:
    """The tiles of one magnification that a network looked at.

    Attributes:
        number: 0 for the finest level, 1 for the one of tiles twice as wide, and so on.
        rows: which of the packed instances they are, int ``[m]``.
        coords: their upper-left corners in level-0 pixels, ``[m, 2]``.
        attention: what the level gave them, a distribution over all it looked at, ``[m]``.
        looked_at: how many tiles share it, those outside the slide among them.
        frame: the slide, with the tile size of this level.
    """

    number: int
    rows: np.ndarray
    coords: np.ndarray
    attention: np.ndarray
    looked_at: int
    frame: SlideFrame


def is_packed(case: Case) -> bool:
    """Whether the network that answered the case looked at several magnifications."""
    return case.values("level_logits") is not None


def finest_tiles(case: Case) -> np.ndarray:
    """The tiles of the finest level that maps show, as indices of the packed instances without padding, int ``[m]``.

    Left out are tiles wholly outside the slide and, where the case has ``tissue_fraction``, glass that the network did
    not look at.

    Raises:
        CohortError: the case is not packed as its output says.
    """
    coords, scores = _read(case)
    finest = _level_slices(case, scores)[-1]
    frame = case.frame
    shown = _inside(coords[finest], frame.tile_size_level0, frame)
    tissue = case.values("tissue_fraction")
    if tissue is not None:
        shown &= (tissue[finest] > 0) | np.isfinite(scores[-1, finest])
    return finest.start + np.flatnonzero(shown)


def looked_at(case: Case) -> Iterator[LevelTiles]:
    """What every level looked at, coarsest level first, without tiles wholly outside the slide.

    Raises:
        CohortError: the case is not packed as its output says.
    """
    coords, scores = _read(case)
    frame = case.frame
    for index, part in enumerate(_level_slices(case, scores)):
        number = len(scores) - 1 - index
        rows = part.start + np.flatnonzero(np.isfinite(scores[index, part]))
        weights = np.exp(scores[index, rows] - scores[index, rows].max(initial=-np.inf))
        size = frame.tile_size_level0 * 2**number
        shown = _inside(coords[rows], size, frame)
        attention = (weights / weights.sum())[shown]
        tile_frame = replace(frame, tile_size_level0=size)
        yield LevelTiles(number, rows[shown], coords[rows[shown]], attention, len(rows), tile_frame)


def _read(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates ``[N, 2]`` and every level's raw attention ``[L, N]`` of the packed instances, padding removed."""
    coords, scores = case.values("coords"), case.values("attention_logits")
    if coords is None or scores is None:
        raise CohortError(
            f"{case.text}: no map of several levels without 'coords' and 'attention_logits' among its keys; ask "
            "the network for its full output"
        )
    if len(coords) != scores.shape[1]:
        raise CohortError(f"{case.text}: {scores.shape[1]} scores for {len(coords)} coordinates")
    return coords, scores


def _level_slices(case: Case, scores: np.ndarray) -> list[slice]:
    """Where every level lies among the packed instances, coarsest first."""
    from monai_mil.networks.blocks import tree_sizes

    try:
        ends = np.cumsum([0, *tree_sizes(scores.shape[1], len(scores))]).tolist()
    except ValueError as error:
        raise CohortError(f"{case.text}: {error}") from error
    return [slice(start, end) for start, end in pairwise(ends)]


def _inside(coords: np.ndarray, size: float, frame: SlideFrame) -> np.ndarray:
    """False for tiles wholly outside the slide, bool ``[m]``."""
    touches = (coords + size > 0) & (coords < np.array(frame.level0_size))
    return touches[:, 0] & touches[:, 1]
