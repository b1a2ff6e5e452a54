"""What every benchmark shares: CPU time of alternatives measured back to back, and figures with their targets."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_COMPARE = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Figure:
    """One measured number; ``target`` reads like ``">= 0.85"`` and is None where the number is only shown."""

    name: str
    value: float
    unit: str
    target: str | None = None

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        sign, bound = self.target.split()
        return bool(_COMPARE[sign](self.value, float(bound)))


def cpu_seconds(alternatives: Mapping[str, Callable[[], object]], rounds: int = 3) -> dict[str, float]:
    """Minimum process CPU time of each alternative over ``rounds``, run in turn so that noise hits all alike."""
    return _minimum(alternatives, rounds, time.process_time)


def wall_seconds(alternatives: Mapping[str, Callable[[], object]], rounds: int = 3) -> dict[str, float]:
    """Minimum wall time of each alternative over ``rounds``, run in turn."""
    return _minimum(alternatives, rounds, time.perf_counter)


def _minimum(
    alternatives: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    best = dict.fromkeys(alternatives, float("inf"))
    for _ in range(rounds):
        for name, run in alternatives.items():
            start = clock()
            run()
            best[name] = min(best[name], clock() - start)
    return best
