"""Draw every class equally often."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import ignite.distributed as idist
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler


class BalancedSampler(DistributedSampler[int]):
    """As many cases an epoch as there are, every group of them equally often.

    Within a group no case comes a second time before all have come once. Draws depend on ``seed`` and the epoch alone,
    which MONAI's trainers set, so that a resumed run draws what the whole run would; several processes share one draw,
    of as many cases as are a multiple of their number.

    Args:
        groups: indices of the cases of every group; a case may be in several.
        length: cases an epoch.
        seed: of the draws.

    Examples:
        >>> from monai_mil.training import BalancedSampler
        >>> drawn = list(BalancedSampler([[0], [1, 2, 3]], length=4))
        >>> drawn.count(0), len(drawn)
        (2, 4)
    """

    def __init__(self, groups: Sequence[Sequence[int]], length: int, seed: int = 0) -> None:
        places: Sequence[int] = range(length)
        super().__init__(places, idist.get_world_size(), idist.get_rank(), seed=seed)  # type: ignore[arg-type]
        self.groups = [torch.as_tensor(group) for group in groups]

    def __iter__(self) -> Iterator[int]:
        """This process's part of the epoch's draws."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        each, over = divmod(self.total_size, len(self.groups))
        counts = [each] * len(self.groups)
        for group in torch.randperm(len(self.groups), generator=generator)[:over].tolist():
            counts[group] += 1
        drawn = torch.cat([_draw(*pair, generator) for pair in zip(self.groups, counts, strict=True)])
        drawn = drawn[torch.randperm(len(drawn), generator=generator)]
        return iter(drawn[self.rank :: self.num_replicas].tolist())


def _draw(group: Tensor, count: int, generator: torch.Generator) -> Tensor:
    rounds = [torch.randperm(len(group), generator=generator) for _ in range(math.ceil(count / len(group)))]
    return group[torch.cat(rounds)[:count]] if rounds else group[:0]
