"""The score that model selection and early stopping compare: an engine's key metric, higher is better."""

from __future__ import annotations

import math
import warnings
from typing import Literal

from ignite.engine import Engine

Mode = Literal["max", "min"]


def key_score(engine: Engine, mode: Mode, split: Literal["val", "train"] = "val") -> float | None:
    """An engine's key metric, turned so that higher is better.

    Args:
        engine: a MONAI evaluator or trainer that has a key metric and has just completed an epoch.
        mode: ``"max"`` if a high metric is good, ``"min"`` if a low one is.
        split: what the engine works on, for messages.

    Returns:
        The score, or None with a warning if the metric is not a finite number.

    Raises:
        ValueError: the engine has no key metric.
    """
    name = getattr(engine.state, "key_metric_name", None)
    if name is None or name not in engine.state.metrics:
        role = "evaluator" if split == "val" else "trainer"
        raise ValueError(f"the {role} has no key metric; give it 'key_{split}_metric'")
    value = float(engine.state.metrics[name])
    if not math.isfinite(value):
        kind = "validation" if split == "val" else "training"
        warnings.warn(
            f"{kind} metric '{name}' is {value}, not a finite number (an AUROC needs bags of more than one class); "
            "this epoch cannot become the best one",
            stacklevel=2,
        )
        return None
    return value if mode == "max" else -value
