"""What model selection and early stopping read from an evaluator."""

from __future__ import annotations

import math
import warnings
from typing import Literal

from ignite.engine import Engine

Mode = Literal["max", "min"]


def key_score(evaluator: Engine, mode: Mode) -> float | None:
    """The evaluator's key metric, turned so that higher is better.

    Args:
        evaluator: a MONAI evaluator that has a key metric and has just completed.
        mode: ``"max"`` if a high metric is good, ``"min"`` if a low one is.

    Returns:
        The score, or None with a warning if the metric is not a finite number.

    Raises:
        ValueError: the evaluator has no key metric.
    """
    name = getattr(evaluator.state, "key_metric_name", None)
    if name is None or name not in evaluator.state.metrics:
        raise ValueError("the evaluator has no key metric; give it 'key_val_metric'")
    value = float(evaluator.state.metrics[name])
    if not math.isfinite(value):
        warnings.warn(
            f"validation metric '{name}' is {value}, not a finite number (an AUROC needs bags of more than one class); "
            "this epoch cannot become the best one",
            stacklevel=2,
        )
        return None
    return value if mode == "max" else -value
