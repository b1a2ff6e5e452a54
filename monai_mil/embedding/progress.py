"""What a user sees while a cohort is embedded: cases done, instances of the current one, and at the end what failed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from monai_mil.embedding.job import CaseKind, CaseResult

_SHOWN_REMARKS = 10
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class EmbedProgress:
    """Two bars on standard error; silent where not ``enabled``."""

    def __init__(self, kind: CaseKind, num_cases: int, *, enabled: bool) -> None:
        self._kind = kind
        self._num_cases = num_cases
        self._console = Console(stderr=True, quiet=not enabled)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, disable=not enabled)
        self._cases = self._bar.add_task(kind.cases, total=num_cases)
        self._instances = self._bar.add_task(kind.instances, total=None, visible=False)
        self._failed: list[CaseResult] = []
        self._remarked: list[CaseResult] = []

    def __enter__(self) -> EmbedProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.update(self._instances, visible=False)
        self._bar.stop()
        if self._remarked:
            self._console.print(f"[bold]{len(self._remarked)} of {self._num_cases} {self._kind.cases} have remarks:[/]")
            self._list(_remark_lines(self._remarked, self._kind))
        if self._failed:
            self._console.print(f"[bold red]{len(self._failed)} of {self._num_cases} {self._kind.cases} failed:[/]")
            self._list(result.error or "" for result in self._failed)

    def _list(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._console.print(f"  {escape(line)}", soft_wrap=True, highlight=False)

    def start(self, case_id: str) -> None:
        """Name the case in work."""
        self._bar.reset(self._instances, description=escape(case_id), total=None, visible=True)

    def advance(self, done: int, total: int) -> None:
        """Show how many of the case's instances are done."""
        self._bar.update(self._instances, completed=done, total=total)

    def finish(self, result: CaseResult) -> None:
        """Count a case that is done, kept or failed."""
        self._bar.advance(self._cases)
        if result.status == "failed":
            self._failed.append(result)
        if result.remarks:
            self._remarked.append(result)


def _remark_lines(results: Iterable[CaseResult], kind: CaseKind) -> list[str]:
    """One line a kind of remark, the rarest first, so that what is usual in a cohort drowns nothing.

    Remarks are of one kind where they differ by numbers only.
    """
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for result in results:
        for remark in result.remarks:
            kinds[_NUMBER.sub("0", remark)].append((result.case_id, remark))
    lines = []
    for said in sorted(kinds.values(), key=len)[:_SHOWN_REMARKS]:
        case_id, remark = said[0]
        lines.append(f"{case_id}: {remark}" if len(said) == 1 else f"{len(said)} {kind.cases}, as {case_id}: {remark}")
    if len(kinds) > _SHOWN_REMARKS or len(lines) < sum(map(len, kinds.values())):
        lines.append("all of them stand in the newest file of runs/")
    return lines
