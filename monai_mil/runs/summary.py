"""What a person reads when a prediction run has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from monai_mil.runs.bundles import Bundle
from monai_mil.runs.prediction import Outcome

if TYPE_CHECKING:
    from rich.console import Console

_MOST_NAMED = 10
_FILES = (
    ("report", "report.html"),
    ("predictions", "predictions.csv"),
    ("patients", "patients.csv"),
    ("heatmaps", "heatmaps"),
    ("slices", "slices"),
    ("left out", "failed.csv"),
    ("log", "predict.log"),
)


def show_outcome(outcome: Outcome, bundle: Bundle, console: Console) -> None:
    """Say how many cases are done, which are not and why, where the results are, and what the model is."""
    for title, cases in (("left out", outcome.failed), ("without all of their files", outcome.incomplete)):
        if cases:
            console.print(f"[bold red]{len(cases)} of {outcome.found} {bundle.reads} {title}:[/]")
            for message in list(cases.values())[:_MOST_NAMED]:
                console.print(f"  {escape(message)}")
            if len(cases) > _MOST_NAMED:
                console.print(f"  and {len(cases) - _MOST_NAMED} more")
    for name, file in _FILES:
        if (outcome.out / file).exists():
            console.print(f"{name:<12} {escape(str(outcome.out / file))}")
    if outcome.note:
        console.print(f"[bold yellow]{escape(outcome.note)}[/]")
    earlier = f", {outcome.kept} of them by an earlier run" if outcome.kept else ""
    done = outcome.found - len(outcome.failed)
    noun = bundle.reads if outcome.found != 1 else bundle.reads.removesuffix("s")
    set_aside = f" ({outcome.set_aside} set aside)" if outcome.set_aside else ""
    console.print(f"{outcome.found} {noun} found: {done} predicted{earlier}, {len(outcome.failed)} left out{set_aside}")
