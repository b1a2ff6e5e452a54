"""Synthetic cohorts of feature bags with planted instances or tokens, seeded."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_mil.bags import BagFile, BagInfo
from monai_mil.cohorts import Cohort, CohortSlide, split_cohort

_CLASSES = ("normal", "tumor")
_LABELS = ("label_0", "label_1", "label_2", "label_3")
_BACKGROUNDS = 4
_STEP = 512
"""Level-0 pixels from tile to tile."""


def make_bag_cohort(
    folder: str | os.PathLike[str],
    *,
    num_bags: int = 60,
    width: int = 64,
    seed: int = 0,
    bag_size: tuple[int, int] = (40, 200),
    planted: float = 0.1,
    classes: Sequence[str] | None = None,
    grid: tuple[int, int] | None = None,
    multi_label: bool = False,
    missing: float = 0.2,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
) -> Path:
    """Write feature bags in which a connected patch carries the class, and the cohort table.

    Instances are one of four background prototypes plus unit noise; in a bag of class ``k > 0`` the planted ones are
    around prototype ``k`` instead. The bags keep every instance's class as the dataset ``instance_labels``.

    With ``multi_label`` every class is a label of its own, true of half the bags whatever the others are. Each label
    adds its prototype to a disc of tokens that reaches over neighbouring instances (of instances, where there is no
    ``grid``). The bags keep the truth, of unknown labels too, as ``token_labels``, uint8 ``[n, c, h, w]``
    (``[n, c, 1, 1]``), and as ``instance_labels``, 1 where an instance has a planted token of any label.

    Args:
        folder: gets ``bags/<slide_id>.h5`` and ``cohort.csv``.
        num_bags: how many bags; classes alternate.
        width: number of feature channels.
        seed: of everything.
        bag_size: smallest and largest number of instances.
        planted: share of planted instances (with ``multi_label`` of tokens, for each label) in a bag, at least one.
        classes: names; the first has nothing planted, except with ``multi_label``. Default ``normal`` and ``tumor``, or
            ``label_0`` to ``label_3``.
        grid: ``(h, w)`` for spatial bags.
        multi_label: write a column of 0 and 1 for every class in place of one column with a class.
        missing: with ``multi_label``, share of cells left empty (unknown); every bag keeps at least one.
        fractions: shares of train, val and test.

    Returns:
        Path of ``cohort.csv``; the slides themselves do not exist.

    Examples:
        >>> from monai_mil.cohorts import read_cohort
        >>> from monai_mil.synthetic import make_bag_cohort
        >>> cohort = read_cohort(make_bag_cohort(folder, num_bags=10, width=8, bag_size=(5, 20)))
        >>> cohort.classes, len(cohort.slides)
        (('normal', 'tumor'), 10)
    """
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    names = tuple(classes or (_LABELS if multi_label else _CLASSES))
    prototypes = rng.normal(0, 0.7, (_BACKGROUNDS + len(names), width))
    digest = hashlib.sha256(f"{seed} {width} {grid}".encode()).hexdigest()[:16]
    present = _draw_labels(rng, num_bags, len(names)) if multi_label else None
    slides = []
    for index in range(num_bags):
        label, slide_id = index % len(names), f"bag_{index:03d}"
        n = int(rng.integers(bag_size[0], bag_size[1] + 1))
        if present is None:
            bag = _class_bag(rng, n, prototypes, label, planted, grid)
        else:
            bag = _label_bag(rng, n, prototypes, present[index], planted, grid or (1, 1))
        features = bag.features if grid else bag.features.reshape(n, width)
        info = _info(slide_id, digest, bag.coords)
        BagFile.write(folder / "bags" / f"{slide_id}.h5", features, bag.coords, info, bag.truth)
        slides.append(CohortSlide(slide_id=slide_id, patient_id=f"patient_{index:03d}", label=label))
    cohort = Cohort(folder / "cohort.csv", tuple(slides), ("label",), names)
    cohort = split_cohort(cohort, fractions, seed)
    if present is not None:
        cohort = _multi_label(cohort, _hide(rng, present, missing))
    return cohort.write(folder / "cohort.csv")


@dataclass(frozen=True)
class _Bag:
    """Features ``[n, d]`` or ``[n, d, h, w]``, the tiles' corners ``[n, 2]``, and what is planted, by dataset."""

    features: np.ndarray
    coords: np.ndarray
    truth: dict[str, np.ndarray]


def _class_bag(
    rng: np.random.Generator,
    n: int,
    prototypes: np.ndarray,
    label: int,
    planted: float,
    grid: tuple[int, int] | None,
) -> _Bag:
    """A bag whose planted instances are around their class's prototype, all tokens of them."""
    index, labels = _tile_grid(n), np.zeros(n, np.int64)
    if label:
        distance = np.linalg.norm(index - index[rng.integers(n)], axis=1)
        labels[_nearest(distance, planted)] = label
    kind = np.where(labels > 0, _BACKGROUNDS + labels, rng.integers(0, _BACKGROUNDS, n))
    shape = (n, prototypes.shape[1], *(grid or ()))
    centre = prototypes[kind].reshape(*shape[:2], *(1,) * (len(shape) - 2))
    features = (centre + rng.standard_normal(shape)).astype(np.float16)
    return _Bag(features, index * _STEP, {"instance_labels": labels})


def _label_bag(
    rng: np.random.Generator,
    n: int,
    prototypes: np.ndarray,
    present: np.ndarray,
    planted: float,
    grid: tuple[int, int],
) -> _Bag:
    """A bag in which every present label adds its prototype to a disc of tokens."""
    index = _tile_grid(n)
    place = index[:, None, None, ::-1] * grid + np.moveaxis(np.indices(grid), 0, -1)
    truth = np.zeros((n, len(present), *grid), np.uint8)
    for label in np.flatnonzero(present):
        middle = place[tuple(rng.integers(side) for side in place.shape[:3])]
        distance = np.linalg.norm(place - middle, axis=-1)
        truth[:, label].flat[_nearest(distance, planted)] = 1
    centre = prototypes[rng.integers(0, _BACKGROUNDS, n)][:, :, None, None]
    centre = centre + np.einsum("nchw,cd->ndhw", truth, prototypes[_BACKGROUNDS:])
    features = (centre + rng.standard_normal(centre.shape)).astype(np.float16)
    instance_labels: np.ndarray = truth.max(axis=(1, 2, 3), initial=0).astype(np.int64)
    return _Bag(features, index * _STEP, {"instance_labels": instance_labels, "token_labels": truth})


def _tile_grid(n: int) -> np.ndarray:
    """Column and row of tiles that fill a square row by row, ``[n, 2]``."""
    columns = int(np.ceil(np.sqrt(n)))
    return np.stack([np.arange(n) % columns, np.arange(n) // columns], axis=1)


def _nearest(distance: np.ndarray, share: float) -> np.ndarray:
    """Flat indices of the ``share`` of all places with the smallest distance, at least one."""
    return np.argsort(distance, axis=None, kind="stable")[: max(1, round(share * distance.size))]


def _draw_labels(rng: np.random.Generator, num_bags: int, num_labels: int) -> np.ndarray:
    """0 or 1 ``[num_bags, num_labels]``: every label in half of the bags, independent of the others."""
    return rng.permuted(np.tile(np.arange(num_bags)[:, None] % 2, num_labels), axis=0)


def _hide(rng: np.random.Generator, present: np.ndarray, missing: float) -> np.ndarray:
    """``present`` with NaN in about the share ``missing`` of its cells, never in all of a row."""
    chance = rng.random(present.shape)
    hidden = (chance < missing) & (chance < chance.max(axis=1, keepdims=True))
    return np.where(hidden, np.nan, present)


def _multi_label(cohort: Cohort, labels: np.ndarray) -> Cohort:
    """The cohort with a column for every class in place of the one with a class."""
    rows = zip(cohort.slides, labels.tolist(), strict=True)
    slides = tuple(dataclasses.replace(slide, label=tuple(row)) for slide, row in rows)
    return dataclasses.replace(cohort, slides=slides, labels=cohort.classes)


def _info(slide_id: str, digest: str, coords: np.ndarray) -> BagInfo:
    return BagInfo(
        slide_id=slide_id,
        encoder="synthetic",
        encoder_digest=digest,
        tile_size=256,
        tile_size_level0=float(_STEP),
        overlap=0,
        target_mpp=0.5,
        level0_size=(int(coords[:, 0].max()) + _STEP, int(coords[:, 1].max()) + _STEP),
        mpp=0.25,
        reader="synthetic",
    )
