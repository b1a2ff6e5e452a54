"""Figures of all processes together, and as a file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

import ignite.distributed as idist
import torch.distributed as dist

from monai_mil.files import replacing

Case = TypeVar("Case")


def gather_cases(cases: list[Case]) -> list[Case]:
    """The cases of all processes; every process must call."""
    if idist.get_world_size() == 1:
        return cases
    parts: list[list[Case]] = [[] for _ in range(idist.get_world_size())]
    dist.all_gather_object(parts, cases)
    return [case for part in parts for case in part]


def write_json(report: Any, path: Path) -> None:
    """Write a report as a whole; NaN becomes null, for JSON knows none."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(_nulled(report), indent=4) + "\n", encoding="utf-8")


def _nulled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _nulled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_nulled(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
