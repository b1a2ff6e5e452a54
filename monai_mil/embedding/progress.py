"""What a user sees while a cohort is embedded: cases done, instances of the current one, and at the end what failed."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.markup import escape

from monai_mil.embedding.bars import CaseBars
from monai_mil.embedding.job import CaseKind, CaseResult
from monai_mil.errors import SetAsideError
from monai_mil.scans import gravity

_SHOWN_REMARKS = 10
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class EmbedProgress(CaseBars):
    """Two bars on standard error; silent where not ``enabled``."""

    def __init__(self, kind: CaseKind, num_cases: int, *, enabled: bool) -> None:
        self._kind = kind
        self._num_cases = num_cases
        self._console = Console(stderr=True, quiet=not enabled)
        super().__init__(self._console, kind.cases, num_cases, enabled=enabled)
        self._failed: list[CaseResult] = []
        self._remarked: list[CaseResult] = []
        self._done: Counter[str] = Counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._remarked:
            self._console.print(f"[bold]{len(self._remarked)} of {self._num_cases} {self._kind.cases} have remarks:[/]")
            self._list(_remark_lines(self._remarked, self._kind))
        if self._failed:
            self._console.print(f"[bold red]{len(self._failed)} of {self._num_cases} {self._kind.cases} failed:[/]")
            self._list(result.error or "" for result in self._failed)
        if kind is None:
            self._console.print(self._count(), highlight=False)

    def _count(self) -> str:
        """How many cases there were and what became of them, the last line of a run."""
        kept = f", {self._done['kept']} kept" if self._done["kept"] else ""
        set_aside = sum(result.cause == SetAsideError.status for result in self._failed)
        return (
            f"{self._num_cases} {self._kind.cases if self._num_cases != 1 else self._kind.case} found: "
            f"{self._done['embedded']} embedded{kept}, {self._num_cases - self._done.total() + self._done['failed']} "
            f"left out{f' ({set_aside} set aside)' if set_aside else ''}"
        )

    def _list(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._console.print(f"  {escape(line)}", soft_wrap=True, highlight=False)

    def finish(self, result: CaseResult) -> None:
        """Count a case that is done, kept or failed."""
        self.count()
        self._done[result.status] += 1
        if result.status == "failed":
            self._failed.append(result)
        if result.remarks:
            self._remarked.append(result)


def _remark_lines(results: Iterable[CaseResult], kind: CaseKind) -> list[str]:
    """One line a kind of remark, the gravest first, of the same gravity the rarest, so that nothing grave is drowned.

    Remarks are of one kind where they differ by numbers only.
    """
    kinds: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for result in results:
        for remark in result.remarks:
            kinds[_NUMBER.sub("0", remark)].append((result.case_id, remark))
    lines = []
    for said in sorted(kinds.values(), key=_weight)[:_SHOWN_REMARKS]:
        case_id, remark = said[0]
        lines.append(f"{case_id}: {remark}" if len(said) == 1 else f"{len(said)} {kind.cases}, as {case_id}: {remark}")
    if len(kinds) > _SHOWN_REMARKS or len(lines) < sum(map(len, kinds.values())):
        lines.append("all of them stand in the newest file of runs/")
    return lines


def _weight(said: list[tuple[str, str]]) -> tuple[int, int]:
    return gravity(said[0][1]), len(said)
