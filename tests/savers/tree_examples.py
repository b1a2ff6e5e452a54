"""Cases of several magnifications with attention planted at one place of the slide."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from monai_mil.networks.blocks.tree import child_rows, nested_rank, tree_sizes

LEVELS = 3
TILE = 64
SIZE = (700, 500)  # three columns and two rows of the coarsest tiles, whose last finest column lies outside
PLACE = (150, 330)


def packed_coords(columns: int = 3, rows: int = 2, levels: int = LEVELS, tile: int = TILE) -> np.ndarray:
    """Corners of a grid of coarsest tiles, one column after the other, and of all their descendants, ``[N, 2]``."""
    side = tile * 2 ** (levels - 1)
    parts = [np.array([(column * side, row * side) for column in range(columns) for row in range(rows)])]
    for _ in range(levels - 1):
        side //= 2
        steps = np.array([(0, 0), (0, side), (side, 0), (side, side)])
        parts.append((parts[-1][:, None] + steps).reshape(-1, 2))
    return np.concatenate(parts)


def planted_case(name: str = "slide", k: int = 2, place: tuple[int, int] = PLACE, prob: float = 0.9) -> dict[str, Any]:
    """A case whose levels attend to what is near ``place``, each on a scale of its own, and open ``k`` tiles."""
    coords = torch.from_numpy(packed_coords())
    sizes = tree_sizes(len(coords), LEVELS)
    scores = torch.full((LEVELS, len(coords)), -float("inf"))
    rows, start = torch.arange(sizes[0]), 0
    for level, size in enumerate(sizes):
        side = TILE * 2 ** (LEVELS - 1 - level)
        distance = (coords[start + rows] + side / 2 - torch.tensor(place)).float().norm(dim=1)
        scores[level, start + rows] = 100 * (-1) ** level - distance / (10 + 20 * level)
        rows = child_rows(rows[scores[level, start + rows].argsort(descending=True)[:k]])
        start += size
    looked = torch.isfinite(scores).any(dim=0)
    evidence = (3 - (coords + TILE / 2 - torch.tensor(place)).float().norm(dim=1) / 50).where(looked, scores[0].min())
    meta = {"slide_id": name, "slide_path": "", "level0_size": SIZE, "mpp": 0.5, "tile_size_level0": float(TILE)}
    return {
        "image": MetaTensor(torch.zeros(4, len(coords)), meta=meta),
        "coords": coords,
        "slide_id": name,
        "label": 1,
        "pred": torch.tensor([1 - prob, prob]),
        "level_logits": torch.zeros(LEVELS, 2),
        "attention_logits": scores,
        "instance_logits": torch.stack([-evidence, evidence]),
        "instance_scores": nested_rank(scores, LEVELS).expand(2, -1),
    }


def padded(item: dict[str, Any], extra: int) -> dict[str, Any]:
    """The case as a batch with a longer one holds it."""
    count = len(item["coords"])
    fill = {"coords": 0.0, "attention_logits": -float("inf"), "instance_logits": -float("inf"), "instance_scores": 0.0}
    wide = {}
    for key, value in fill.items():
        shape = (extra, 2) if key == "coords" else (len(item[key]), extra)
        wide[key] = torch.cat(
            [item[key], torch.full(shape, value).to(item[key].dtype)], dim=0 if key == "coords" else 1
        )
    return {**item, **wide, "mask": torch.arange(count + extra) < count}
