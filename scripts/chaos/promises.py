"""Promises that were kept or broken, counted, and shown as a table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_SHOWN = 5


@dataclass
class Promise:
    """One promise: how often it was put to the test, how often it was broken, and by what.

    A ``note`` is a count that is told and breaks nothing.
    """

    what: str
    tried: int = 0
    broken: list[str] = field(default_factory=list)
    note: str = ""

    def test(self, kept: bool, how: str) -> None:
        self.tried += 1
        if not kept:
            self.broken.append(how)

    @property
    def kept(self) -> bool:
        return not self.broken


class Promises:
    """Promises by name, in the order in which they were first put to the test."""

    def __init__(self) -> None:
        self._known: dict[str, Promise] = {}

    def __getitem__(self, what: str) -> Promise:
        return self._known.setdefault(what, Promise(what))

    def __iter__(self) -> Iterable[Promise]:
        return iter(self._known.values())

    @property
    def all_kept(self) -> bool:
        return all(promise.kept for promise in self)

    def show(self, title: str, console: Console) -> None:
        table = Table("promise", "tried", "broken", "", title=title, title_justify="left")
        for promise in self:
            verdict = "[green]kept[/]" if promise.kept else "[red]BROKEN[/]"
            note = f" ({promise.note})" if promise.note else ""
            table.add_row(escape(promise.what + note), str(promise.tried), str(len(promise.broken)), verdict)
        console.print(table)
        for promise in self:
            for how in promise.broken[:_SHOWN]:
                console.print(f"  {promise.what}: {how}", markup=False, highlight=False, soft_wrap=True)

    def record(self) -> list[dict[str, Any]]:
        return [asdict(promise) | {"kept": promise.kept} for promise in self]
