"""What slice metrics read from an evaluator's iteration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine

from monai_mil.metrics import Array


@dataclass(frozen=True, eq=False)
class SliceCase:
    """One scan: its names, and scores, labels (-1 where unknown) and head-mean attention of its slices, ``[s]`` each.

    ``attention`` is None where the network has none.
    """

    case_id: str
    patient_id: str
    scores: Array
    labels: Array
    attention: Array | None


def slice_cases(engine: Engine, keys: Sequence[str]) -> Iterator[SliceCase]:
    """The scans of an engine's iteration, as :class:`monai_mil.training.UnpackOutputd` leaves them, without padding.

    Args:
        engine: decollates, and its batch may have ``instance_labels`` and ``mask``.
        keys: of tensors ``[c, s]`` whose last row, the positive class, are the scores; the first there is.

    Raises:
        ValueError: the engine does not decollate, or a case has no name or no scores.
    """
    batch: Any = engine.state.batch
    output: Any = engine.state.output
    if not isinstance(batch, Sequence) or not isinstance(output, Sequence):
        raise ValueError("slice metrics need decollated items: keep decollate=True of the evaluator")
    for given, made in zip(batch, output, strict=True):
        yield _read({**given, **made}, keys)


def _read(item: Mapping[str, Any], keys: Sequence[str]) -> SliceCase:
    name = item.get("scan_id", item.get("slide_id", getattr(item.get("image"), "meta", {}).get("slide_id")))
    key = next((key for key in keys if key in item), None)
    if name is None or key is None:
        missing = "'scan_id'" if name is None else " and ".join(f"'{key}'" for key in keys)
        raise ValueError(
            f"a case of the engine has no {missing}; use FullOutputInferer and UnpackOutputd, and a cohort"
        )
    rows = _numbers(item[key]).astype(float)
    real = _numbers(item["mask"]).astype(bool) if "mask" in item else np.ones(rows.shape[-1], dtype=bool)
    labels = _numbers(item["instance_labels"]) if "instance_labels" in item else np.full(len(real), -1)
    attention = _numbers(item["attention"]).astype(float).mean(axis=0)[real] if "attention" in item else None
    scores = rows[-1] if rows.ndim == 2 else rows
    return SliceCase(str(name), str(item.get("patient_id", name)), scores[real], labels[real], attention)


def _numbers(values: Any) -> Array:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
