"""Cases of all processes together."""

from __future__ import annotations

from typing import TypeVar

import ignite.distributed as idist
import torch.distributed as dist

Case = TypeVar("Case")


def gather_cases(cases: list[Case]) -> list[Case]:
    """The cases of all processes; every process must call."""
    if idist.get_world_size() == 1:
        return cases
    parts: list[list[Case]] = [[] for _ in range(idist.get_world_size())]
    dist.all_gather_object(parts, cases)
    return [case for part in parts for case in part]
