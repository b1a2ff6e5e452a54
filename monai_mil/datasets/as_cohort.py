"""The classic sets and MNIST-bags as cohorts of bag files, which every bundle of vectors takes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monai_mil.bags import BagFile, BagInfo
from monai_mil.cohorts import Cohort, CohortSlide, split_cohort
from monai_mil.datasets.classic import read_classic
from monai_mil.datasets.mnist_bags import make_mnist_bags

_CLASSES = ("negative", "positive")


def classic_cohort(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """Write a classic set as ``cohort.csv`` and ``bags/``; see :func:`read_classic`.

    Features are brought to mean 0 and standard deviation 1 over all instances of the set, those of bags that are later
    tested on too, without looking at a label: a bag file has one scale for all folds.

    Args:
        path: the set's ``.npz`` file.
        folder: gets the table and the bags.

    Returns:
        Path of ``cohort.csv``.

    Raises:
        BagError: as :func:`read_classic`.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.datasets import classic_cohort
        >>> features = np.random.default_rng(0).normal(size=(30, 166))
        >>> np.savez(folder / "musk1.npz", features=features, bag_id=np.arange(30) // 3, bag_label=np.arange(10) % 2)
        >>> classic_cohort(folder / "musk1.npz", folder / "musk1").read_text().splitlines()[1].split(",")[0]
        'musk1_000'
    """
    bags = read_classic(path)
    spread = bags.features.std(axis=0)
    features = (bags.features - bags.features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    rows = [features[bags.rows(bag)] for bag in range(len(bags))]
    return _write(Path(folder), bags.name, rows, bags.labels.tolist())


def mnist_cohort(
    path: str | os.PathLike[str], folder: str | os.PathLike[str], *, num_bags: int = 200, seed: int = 0
) -> Path:
    """Write MNIST-bags as ``cohort.csv`` and ``bags/``: the pixels of a digit are its features.

    Args:
        path: MNIST, see :func:`make_mnist_bags`, which draws the bags from its training part.
        folder: gets the table and the bags.
        num_bags: how many.
        seed: of the draw.

    Returns:
        Path of ``cohort.csv``.
    """
    drawn = make_mnist_bags(path, num_bags=num_bags, seed=seed)
    rows = [bag["image"][0].flatten(1).numpy() for bag in drawn]
    return _write(Path(folder), "mnist", rows, [bag["label"] for bag in drawn])


def _write(folder: Path, name: str, rows: Sequence[np.ndarray], labels: Sequence[int]) -> Path:
    digest = hashlib.sha256(b"".join(values.tobytes() for values in rows)).hexdigest()[:16]
    slides = []
    for number, (values, label) in enumerate(zip(rows, labels, strict=True)):
        bag = f"{name}_{number:03d}"
        info = BagInfo(bag, encoder=name, encoder_digest=digest)
        BagFile.write(folder / "bags" / f"{bag}.h5", values, np.zeros((len(values), 2), np.int64), info)
        slides.append(CohortSlide(bag, bag, label=label))
    cohort = Cohort(folder / "cohort.csv", tuple(slides), ("label",), _CLASSES)
    return split_cohort(cohort).write(folder / "cohort.csv")
