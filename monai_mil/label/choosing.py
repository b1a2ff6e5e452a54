"""Which image, and which tile of a slide, is labelled next: the arithmetic of the strategies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist

from monai_mil.heatmaps import Heatmap, drawing_style

Box = tuple[float, float, float, float]


def highest(values: Mapping[str, float], count: int = 1) -> list[str]:
    """The names of the highest values, highest first; of equal ones in the order of their names.

    Examples:
        >>> from monai_mil.label import highest
        >>> highest({"a": 0.1, "c": 0.9, "b": 0.9}, 2)
        ['b', 'c']
    """
    return sorted(values, key=lambda name: (-values[name], name))[:count]


def farthest_first(
    embeddings: Mapping[str, np.ndarray], labelled: Sequence[np.ndarray] = (), count: int = 1
) -> list[str]:
    """The images that lie farthest from all that is labelled, one after the other (Sener and Savarese 2018).

    Without anything labelled the first is the one that lies closest to the middle.

    Args:
        embeddings: of the images without a label, ``[d]`` each.
        labelled: of those with one.
        count: how many.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.label import farthest_first
        >>> farthest_first({"a": np.array([0.0]), "b": np.array([1.0]), "c": np.array([9.0])}, [np.array([0.0])], 2)
        ['c', 'b']
    """
    distance = distances(embeddings, labelled)
    chosen = [] if labelled else highest(distance)
    if chosen:
        rest = {name: embedding for name, embedding in embeddings.items() if name not in chosen}
        distance = distances(rest, [embeddings[chosen[0]]])
    while distance and len(chosen) < count:
        (name,) = highest(distance)
        chosen.append(name)
        del distance[name]
        for other in distance:
            distance[other] = min(distance[other], float(np.linalg.norm(embeddings[other] - embeddings[name])))
    return chosen


def distances(embeddings: Mapping[str, np.ndarray], labelled: Sequence[np.ndarray]) -> dict[str, float]:
    """Of every image how far the nearest labelled one is; without any, how close it lies to the middle of all."""
    if not embeddings:
        return {}
    points = np.stack(list(embeddings.values()))
    if labelled:
        near = cdist(points, np.stack(list(labelled))).min(axis=1)
    else:
        near = -np.linalg.norm(points - points.mean(axis=0), axis=1)
        near -= near.min()
    return dict(zip(embeddings, near.tolist(), strict=True))


def rank_product(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Of every name the product of its ranks in both, 1 for the lowest; a scale of either plays no part.

    Examples:
        >>> from monai_mil.label import rank_product
        >>> rank_product({"a": 0.1, "b": 0.9}, {"a": 5, "b": 7})
        {'a': 1.0, 'b': 4.0}
    """
    from scipy.stats import rankdata

    names = [name for name in first if name in second]
    ranks = [rankdata([values[name] for name in names]) for values in (first, second)]
    return dict(zip(names, (ranks[0] * ranks[1]).tolist(), strict=True))


def next_tile(
    heatmap: Heatmap,
    patch_size: tuple[int, int],
    covered: Sequence[Box] = (),
    mode: Literal["hottest", "uncertain"] = "hottest",
) -> tuple[int, int, int, int] | None:
    """The part of a slide that an annotator looks at next: around the best tile that no annotation covers.

    Args:
        heatmap: the model's.
        patch_size: width and height of the part in level-0 pixels.
        covered: boxes x0, y0, x1, y1 of the annotations there are.
        mode: ``hottest`` takes the tile of the highest score, ``uncertain`` the one closest to the threshold, or
            without one to the middle of the scores.

    Returns:
        x, y, width and height, whole numbers within the slide; None where annotations cover all tiles.
    """
    scores = heatmap.tile_scores.astype(float)
    if mode == "uncertain":
        scores = -np.abs(scores - _border(heatmap))
    middle = heatmap.coords + heatmap.frame.tile_size_level0 / 2
    free = np.ones(len(heatmap), bool)
    for x0, y0, x1, y1 in covered:
        free &= ~((middle >= (x0, y0)) & (middle <= (x1, y1))).all(axis=1)
    if not free.any():
        return None
    best = middle[np.flatnonzero(free)[scores[free].argmax()]]
    size = np.minimum(patch_size, heatmap.frame.level0_size)
    corner = np.clip(np.round(best - size / 2), 0, np.array(heatmap.frame.level0_size) - size).astype(int)
    return int(corner[0]), int(corner[1]), int(size[0]), int(size[1])


def _border(heatmap: Heatmap) -> float:
    """The score at which a tile may be anything."""
    if heatmap.threshold is not None and np.isfinite(heatmap.threshold):
        return heatmap.threshold
    if drawing_style(heatmap).scale.is_unit:
        return 0.5
    return float(heatmap.scores.min() + heatmap.scores.max()) / 2
