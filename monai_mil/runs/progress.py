"""What a user sees while cases are predicted: cases done, tiles or slices of the current one, the time left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class PredictProgress:
    """Two bars on standard error.

    Args:
        console: where they are drawn; nothing moves where it is no terminal.
        cases: what the cases are called, "slides".
        instances: what they are made of, "tiles".
        total: how many cases there are.
        done: how many are done already.
    """

    def __init__(self, console: Console, cases: str, instances: str, total: int, done: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._cases = self._bar.add_task(cases, total=total, completed=done)
        self._instances = self._bar.add_task(instances, total=None, visible=False)
        self._name = instances

    def __enter__(self) -> PredictProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.update(self._instances, visible=False)
        self._bar.stop()

    def start(self, case: str) -> None:
        """Name the case in work."""
        description = f"{self._name} of {escape(case)}"
        self._bar.reset(self._instances, description=description, total=None, visible=True)

    def advance(self, done: int, total: int) -> None:
        """Show how many of the case's instances are encoded."""
        self._bar.update(self._instances, completed=done, total=total)

    def finish(self) -> None:
        """Count a case."""
        self._bar.advance(self._cases)
