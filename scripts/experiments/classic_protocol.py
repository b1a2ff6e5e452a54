"""Cross-validation of the classic sets as it should be: stratified, seeded, standardised on what is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from monai_mil.datasets import ClassicBags

FOLDS = 10


@dataclass(frozen=True, eq=False)
class Fold:
    """One network's part of a cross-validation.

    Attributes:
        bags: the whole set.
        train: indices of bags, int64.
        test: likewise.
        seed: of the network's first parameters and of the order of its bags.
    """

    bags: ClassicBags
    train: np.ndarray
    test: np.ndarray
    seed: int

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the training bags' instances, ``[d]``; 1 where a feature never varies."""
        rows = np.concatenate([self.bags.features[self.bags.rows(bag)] for bag in self.train]).astype(np.float64)
        spread = rows.std(axis=0)
        return rows.mean(axis=0), np.where(spread > 0, spread, 1.0)


def folds(bags: ClassicBags, repetition: int) -> Iterator[Fold]:
    """The ten folds of one repetition, each with the share of positive bags of the whole."""
    from sklearn.model_selection import StratifiedKFold

    splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=repetition)
    for index, (train, test) in enumerate(splitter.split(bags.labels, bags.labels)):
        yield Fold(bags, train, test, seed=1000 * repetition + index)
