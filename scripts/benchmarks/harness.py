"""What every benchmark shares: CPU time of alternatives measured back to back, and figures with their targets."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

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


def in_a_fork(measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Two numbers from a process of its own, whose memory nothing before has shaped; NaN where it was killed."""
    ours, theirs = get_context("fork").Pipe()
    child = get_context("fork").Process(target=_answer, args=(measure, theirs))
    child.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return float("nan"), float("nan")
    finally:
        child.join()


def _answer(measure: Callable[[], tuple[float, float]], answer: Connection) -> None:
    answer.send(measure())
