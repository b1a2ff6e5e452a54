"""A mask of the tokens of tiles: True for those that lie on the slide."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def token_mask(
    coords: np.ndarray | Tensor,
    tile_size_level0: float,
    level0_size: tuple[int, int],
    grid: tuple[int, int],
) -> Tensor | None:
    """Which tokens see the slide: those whose centre lies on it, where border tiles reach beyond.

    Args:
        coords: level-0 x and y of every tile's upper-left corner, ``[n, 2]``.
        tile_size_level0: edge of a tile in level-0 pixels.
        level0_size: width and height of the slide in level-0 pixels.
        grid: tokens of a tile, ``(h, w)``.

    Returns:
        Bool ``[n, h, w]``, or None if all of them do.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.bags import token_mask
        >>> token_mask(np.array([[0, 0]]), tile_size_level0=256.0, level0_size=(256, 128), grid=(2, 2))
        tensor([[[ True,  True],
                 [False, False]]])
    """
    corners = np.asarray(coords, dtype=np.float64)
    inside = []
    for axis, count in ((0, grid[1]), (1, grid[0])):
        centres = corners[:, axis, None] + (np.arange(count) + 0.5) * (tile_size_level0 / count)
        inside.append((centres >= 0) & (centres < level0_size[axis]))
    columns, rows = inside
    if columns.all() and rows.all():
        return None
    return torch.from_numpy(rows[:, :, None] & columns[:, None, :])
