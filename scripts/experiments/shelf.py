"""The bags of many folds in one place, from where every network takes its next one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.classic_protocol import Fold


@dataclass(frozen=True, eq=False)
class Shelf:
    """The bags of all folds, of one set or of several of equal width.

    Attributes:
        rows: instances, float32 ``[m, d]``.
        starts: first row of every bag, ``[b]``.
        lengths: of every bag, ``[b]``.
        sizes: bags of the same one can be filled up to the same length, ``[b]``.
        labels: 0 or 1, ``[b]``.
        mean: of every fold's training instances, ``[folds, d, 1]``.
        spread: likewise their standard deviation.
        train: bags of every fold.
        test: likewise.
        squared: a bag is filled up to a square, with its first tiles repeated.
    """

    rows: Tensor
    starts: Tensor
    lengths: Tensor
    sizes: Tensor
    labels: Tensor
    mean: Tensor
    spread: Tensor
    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    squared: bool

    def parts(self, bags: Tensor) -> Iterator[tuple[int, Any, Tensor]]:
        """A size, the networks whose next bags are of it, and these bags; those that have none (-1) are in no part."""
        sizes = torch.where(bags < 0, -1, self.sizes[bags])
        found = sizes.unique().tolist()
        for size in found:
            if len(found) == 1:
                yield size, slice(None), bags
            elif size >= 0:
                models = (sizes == size).nonzero().flatten()
                yield size, models, bags[models]

    def longest(self, size: int) -> int:
        """:meth:`reach` of all bags of a size."""
        return self.reach(self.sizes == size)

    def reach(self, bags: Tensor) -> int:
        """The length ``n`` that these bags are filled up to."""
        longest = int(self.lengths[bags].max())
        return math.ceil(math.sqrt(longest)) ** 2 if self.squared else max(16, longest)

    def take(self, models: Any, bags: Tensor, reach: int) -> tuple[Tensor, Tensor, Tensor]:
        """A bag for each of ``k`` networks: ``image`` ``[k, 1, d, n]``, ``mask`` ``[k, 1, n]`` and label ``[k, 1]``."""
        lengths = self.lengths[bags][:, None]
        places = torch.arange(reach, device=bags.device)
        rows = self.rows[self.starts[bags][:, None] + places % lengths]
        image = (rows.mT - self.mean[models]) / self.spread[models]
        return image[:, None], (places < lengths)[:, None], self.labels[bags][:, None]

    def to(self, device: torch.device) -> Shelf:
        """A copy whose bags lie on a device; the folds' lists of them stay."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in tensors.items() if torch.is_tensor(value)})


def shelve(folds: Sequence[Fold], squared: bool) -> Shelf:
    """Put the sets of all folds behind each other."""
    sets = list(dict.fromkeys(fold.bags for fold in folds))
    first_row = np.cumsum([0, *(len(bags.features) for bags in sets)])
    first_bag = dict(zip(sets, np.cumsum([0, *map(len, sets)]).tolist(), strict=False))
    lengths = np.concatenate([np.diff(bags.starts) for bags in sets])
    sizes = np.ceil(np.sqrt(lengths)) if squared else np.ceil(np.log(lengths.clip(min=16)) / np.log(4))
    mean, spread = zip(*(fold.statistics() for fold in folds), strict=True)
    return Shelf(
        torch.from_numpy(np.concatenate([bags.features for bags in sets])),
        torch.from_numpy(np.concatenate([bags.starts[:-1] + row for bags, row in zip(sets, first_row, strict=False)])),
        torch.from_numpy(lengths),
        torch.from_numpy(sizes.astype(np.int64)),
        torch.from_numpy(np.concatenate([bags.labels for bags in sets])),
        torch.from_numpy(np.stack(mean)).float()[:, :, None],
        torch.from_numpy(np.stack(spread)).float()[:, :, None],
        tuple(torch.from_numpy(fold.train + first_bag[fold.bags]) for fold in folds),
        tuple(torch.from_numpy(fold.test + first_bag[fold.bags]) for fold in folds),
        squared,
    )
