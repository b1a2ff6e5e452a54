"""Synthetic cohorts of feature bags of several magnifications, with planted instances, seeded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monai_mil.bags import BagFile, BagInfo, level_folder
from monai_mil.cohorts import Cohort, CohortSlide, split_cohort
from monai_mil.slides import child_coords

_CLASSES = ("normal", "tumor")
_BACKGROUNDS = 4
_TILE = 256
_MPP = 0.25


def make_tree_cohort(
    folder: str | os.PathLike[str],
    *,
    levels: int = 3,
    num_bags: int = 60,
    width: int = 64,
    seed: int = 0,
    bag_size: tuple[int, int] = (9, 25),
    planted: float = 0.2,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
) -> Path:
    """Write feature bags of every level, as ``embed --levels`` does, and the cohort table.

    Instances are one of four background prototypes plus unit noise; in half of the bags a connected patch of coarsest
    tiles, and all below them, are around a prototype of their own instead. The bags keep that as ``instance_labels``.

    Args:
        folder: gets ``bags/level_<j>/<slide_id>.h5`` and ``cohort.csv``.
        levels: number of levels.
        num_bags: how many bags; classes ``normal`` and ``tumor`` alternate.
        width: number of feature channels.
        seed: of everything.
        bag_size: smallest and largest number of coarsest tiles.
        planted: share of planted instances in a bag, at least one coarsest tile.
        fractions: shares of train, val and test.

    Returns:
        Path of ``cohort.csv``; the slides themselves do not exist.
    """
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    prototypes = rng.normal(0, 0.7, (_BACKGROUNDS + 1, width))
    digest = hashlib.sha256(f"{seed} {width}".encode()).hexdigest()[:16]
    slides = []
    for index in range(num_bags):
        slide_id, label = f"bag_{index:03d}", index % 2
        coords, truth = _coarsest(rng, int(rng.integers(bag_size[0], bag_size[1] + 1)), planted * label, levels)
        size = tuple((coords.max(axis=0) + _step(levels - 1)).tolist())
        for level in reversed(range(levels)):
            kind = np.where(truth > 0, _BACKGROUNDS, rng.integers(0, _BACKGROUNDS, len(truth)))
            features = (prototypes[kind] + rng.standard_normal((len(kind), width))).astype(np.float16)
            path = level_folder(folder / "bags", level) / f"{slide_id}.h5"
            extras = {
                "instance_labels": truth,
                "inside": np.ones(len(truth), bool),
                "tissue_fraction": np.ones(len(truth), np.float32),
            }
            BagFile.write(path, features, coords, _info(slide_id, digest, size, level, levels), extras)
            coords, truth = child_coords(coords, _step(level)), np.repeat(truth, 4)
        slides.append(CohortSlide(slide_id=slide_id, patient_id=f"patient_{index:03d}", label=label))
    cohort = Cohort(folder / "cohort.csv", tuple(slides), ("label",), _CLASSES)
    return split_cohort(cohort, fractions, seed).write(folder / "cohort.csv")


def _step(level: int) -> float:
    """Side of a tile in level-0 pixels."""
    return float(2 * _TILE * 2**level)


def _coarsest(rng: np.random.Generator, n: int, planted: float, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners of tiles that fill a square column by column, ``[n, 2]``, and which of them are planted, 0 or 1."""
    rows = int(np.ceil(np.sqrt(n)))
    index = np.stack([np.arange(n) // rows, np.arange(n) % rows], axis=1)
    truth = np.zeros(n, np.int64)
    if planted:
        distance = np.linalg.norm(index - index[rng.integers(n)], axis=1)
        truth[np.argsort(distance, kind="stable")[: max(1, round(planted * n))]] = 1
    return (index * _step(levels - 1)).astype(np.int64), truth


def _info(slide_id: str, digest: str, size: tuple[int, int], level: int, levels: int) -> BagInfo:
    return BagInfo(
        slide_id=slide_id,
        encoder="synthetic",
        encoder_digest=digest,
        tile_size=_TILE,
        tile_size_level0=_step(level),
        overlap=0,
        target_mpp=2 * _MPP * 2**level,
        level0_size=size,
        mpp=_MPP,
        reader="synthetic",
        level=level,
        levels=levels,
    )
