"""What a user sees while a cohort is embedded: slides done, tiles of the current slide, and at the end what failed."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from monai_mil.bags.embed_job import SlideResult


class EmbedProgress:
    """Two bars on standard error; silent where not ``enabled``."""

    def __init__(self, num_slides: int, *, enabled: bool) -> None:
        self._num_slides = num_slides
        self._console = Console(stderr=True, quiet=not enabled)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, disable=not enabled)
        self._slides = self._bar.add_task("slides", total=num_slides)
        self._tiles = self._bar.add_task("tiles", total=None, visible=False)
        self._failed: list[SlideResult] = []

    def __enter__(self) -> EmbedProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.update(self._tiles, visible=False)
        self._bar.stop()
        if self._failed:
            self._console.print(f"[bold red]{len(self._failed)} of {self._num_slides} slides failed:[/]")
            for result in self._failed:
                self._console.print(f"  {escape(result.error or '')}", soft_wrap=True, highlight=False)

    def start(self, slide_id: str) -> None:
        """Name the slide in work."""
        self._bar.reset(self._tiles, description=escape(slide_id), total=None, visible=True)

    def advance(self, done: int, total: int) -> None:
        """Show how many of the slide's tiles are done."""
        self._bar.update(self._tiles, completed=done, total=total)

    def finish(self, result: SlideResult) -> None:
        """Count a slide that is done, kept or failed."""
        self._bar.advance(self._slides)
        if result.status == "failed":
            self._failed.append(result)
