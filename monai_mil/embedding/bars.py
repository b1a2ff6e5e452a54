"""Two bars while cases are worked on: cases done, and instances of the current one."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class CaseBars:
    """The bars, and the time left.

    Args:
        console: where they are drawn.
        cases: what the cases are called, "slides".
        total: how many cases there are.
        done: how many are done already.
        enabled: whether anything is drawn.
        instances: what a case is made of, "tiles", to be named beside it; None names the case alone.
    """

    def __init__(
        self, console: Console, cases: str, total: int, *, done: int = 0, enabled: bool, instances: str | None = None
    ) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not enabled)
        self._cases = self._bar.add_task(cases, total=total, completed=done)
        self._instances = self._bar.add_task(instances or "", total=None, visible=False)
        self._of = f"{instances} of " if instances else ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.update(self._instances, visible=False)
        self._bar.stop()

    def start(self, case: str) -> None:
        """Name the case in work."""
        self._bar.reset(self._instances, description=f"{self._of}{escape(case)}", total=None, visible=True)

    def case(self, case: str) -> Callable[[int, int], None]:
        """What shows how far a case has come; it is named when that is told first."""
        told: list[str] = []

        def advance(done: int, total: int) -> None:
            if not told:
                told.append(case)
                self.start(case)
            self.advance(done, total)

        return advance

    def advance(self, done: int, total: int) -> None:
        """Show how many of the case's instances are done."""
        self._bar.update(self._instances, completed=done, total=total)

    def count(self) -> None:
        """Count a case, whatever became of it."""
        self._bar.advance(self._cases)
