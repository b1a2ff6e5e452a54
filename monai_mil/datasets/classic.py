"""The classic multiple-instance benchmarks MUSK1, MUSK2, FOX, TIGER and ELEPHANT as one table of instances each.

MUSK: Dietterich, Lathrop and Lozano-Perez 1997, conformations of molecules. FOX, TIGER and ELEPHANT: Andrews,
Tsochantaridis and Hofmann 2002, regions of images.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_mil.errors import BagError

CLASSIC_SETS = ("musk1", "musk2", "fox", "tiger", "elephant")

_TELLTALE = 0.95
"""Share of bags whose label a column of two values may tell before it is taken for the instances' label."""


@dataclass(frozen=True, eq=False)
class ClassicBags:
    """A whole benchmark in memory, the instances of a bag behind each other.

    Attributes:
        name: of the set.
        features: float32 ``[m, d]``.
        starts: first row of every bag and ``m``, int64 ``[n + 1]``.
        labels: 0 or 1, int64 ``[n]``.
    """

    name: str
    features: np.ndarray
    starts: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, bag: int) -> slice:
        """Rows of one bag."""
        return slice(int(self.starts[bag]), int(self.starts[bag + 1]))


def read_classic(path: str | os.PathLike[str]) -> ClassicBags:
    """Read a set from an ``.npz`` file.

    The copies of these sets that go round keep the label of every instance as one more column of the features, and
    published accuracies come from them. A file with such a column is refused.

    Args:
        path: has ``features`` ``[m, d]`` (166 columns of MUSK, 230 of the others), ``bag_id`` ``[m]`` from 0 to
            ``n - 1`` and ``bag_label`` ``[n]``, 0 or 1.

    Returns:
        The set, named like the file.

    Raises:
        BagError: the file is missing or damaged, its arrays do not belong together, a feature is not finite, or a
            column tells the bags' labels.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.datasets import read_classic
        >>> features = np.random.default_rng(0).normal(size=(30, 166))
        >>> np.savez(folder / "musk1.npz", features=features, bag_id=np.arange(30) // 3, bag_label=np.arange(10) % 2)
        >>> musk = read_classic(folder / "musk1.npz")
        >>> musk.name, len(musk.labels), musk.features[musk.rows(0)].shape
        ('musk1', 10, (3, 166))
    """
    path = Path(path)
    try:
        with np.load(path) as stored:
            arrays = {key: stored[key] for key in ("features", "bag_id", "bag_label")}
    except FileNotFoundError:
        raise BagError(f"classic set '{path}': no such file") from None
    except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise BagError(
            f"classic set '{path}': not an .npz file with features, bag_id and bag_label ({error})"
        ) from error
    _check(path, arrays)
    order = np.argsort(arrays["bag_id"], kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(arrays["bag_id"]))])
    bags = ClassicBags(
        path.stem, arrays["features"][order].astype(np.float32), starts, arrays["bag_label"].astype(np.int64)
    )
    _refuse_labels(path, bags)
    return bags


def _check(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    features, bag_id, labels = arrays["features"], arrays["bag_id"], arrays["bag_label"]
    if features.ndim != 2 or bag_id.shape != features.shape[:1] or labels.ndim != 1:
        raise BagError(
            f"classic set '{path}': features must be [m, d], bag_id [m] and bag_label [n], got "
            f"{list(features.shape)}, {list(bag_id.shape)} and {list(labels.shape)}"
        )
    if not np.array_equal(np.unique(bag_id), np.arange(len(labels))):
        raise BagError(f"classic set '{path}': bag_id must name each of the {len(labels)} bags of bag_label, from 0 on")
    if not np.array_equal(np.unique(labels), [0, 1]):
        raise BagError(f"classic set '{path}': bag_label must hold 0 and 1 and nothing else")
    if not np.isfinite(features).all():
        raise BagError(f"classic set '{path}': a feature is not finite")


def _refuse_labels(path: Path, bags: ClassicBags) -> None:
    """Of a label of instances a bag's highest value is the bag's label, whatever the two values are called."""
    for column, values in enumerate(bags.features.T):
        if not np.array_equal(np.unique(values), [values.min(), values.max()]):
            continue
        for marked in (values == values.min(), values == values.max()):
            told = np.maximum.reduceat(marked, bags.starts[:-1]) == bags.labels
            if told.mean() >= _TELLTALE:
                raise BagError(
                    f"classic set '{path}': column {column} of the features tells the label of {told.mean():.0%} of "
                    "the bags; it is the label of the instances, remove it"
                )
