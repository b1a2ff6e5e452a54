"""A comparison from its first training to its table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from monai_mil.compare.curves import epochs_text, sweep_text
from monai_mil.compare.job import Job
from monai_mil.compare.page import write_comparison_page
from monai_mil.compare.plan import Plan
from monai_mil.compare.results import read_results
from monai_mil.compare.shown import csv_text, markdown_text
from monai_mil.compare.table import Row, make_rows
from monai_mil.files import replacing
from monai_mil.leftovers import remove_leftovers
from monai_mil.locks import claimed


def compare(
    plan: Plan, *, workers: int = 1, scheduler: str | None = None, console: Console | None = None, resamples: int = 1000
) -> list[Row]:
    """Do all jobs that are not done yet, and write the tables.

    ``plan.out`` gets ``table.csv``, ``table.md``, ``epochs.csv``, ``comparison.html`` and, where a key is swept,
    ``sweep.csv``. It may be killed at any moment: jobs that are
    done are never done again, others go on behind their last whole epoch, and the tables become the same but for time
    and memory.

    Args:
        plan: the comparison.
        workers: processes on this machine.
        scheduler: address of a Dask scheduler, in place of those.
        console: where progress is told; None tells nothing.
        resamples: of the intervals and tests.

    Returns:
        The rows of the table.

    Raises:
        SettingsError: the folder holds runs of other settings, or there is no such scheduler.
        BusyError: another comparison is at work there.
    """
    with claimed(plan.out / "comparison"):
        plan.check_earlier()
        remove_leftovers(plan.out)
        waiting = [job for job in plan.jobs if job.finished() is None]
        _tell(console, f"{len(plan.jobs)} runs, {len(plan.jobs) - len(waiting)} of them are done")
        for job in waiting:
            job.failure.unlink(missing_ok=True)
        started = time.monotonic()
        for number, job in enumerate(_done(waiting, workers, scheduler), start=1):
            said, reason = job.finished(), job.failed()
            end = f"no result: {reason}" if said is None else f"validation {said['score']} in epoch {said['epoch']}"
            _tell(console, f"{number} of {len(waiting)} ({time.monotonic() - started:.0f} s): {job.words}: {end}")
        results = read_results(plan)
        rows = make_rows(plan, results, resamples)
        _write(plan.out / "table.csv", csv_text(plan, rows))
        _write(plan.out / "table.md", markdown_text(plan, rows))
        _write(plan.out / "epochs.csv", epochs_text(results))
        if plan.jobs[0].sweep is not None:
            _write(plan.out / "sweep.csv", sweep_text(results, plan.jobs[0].sweep[0]))
        write_comparison_page(plan, results, rows, plan.out / "comparison.html")
    return rows


def _done(jobs: Sequence[Job], workers: int, scheduler: str | None) -> Iterator[Job]:
    if scheduler is not None:
        from monai_mil.compare.dask import run_on_dask

        return run_on_dask(jobs, scheduler)
    from monai_mil.compare.workers import run_here

    return run_here(jobs, workers)


def _tell(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, markup=False)


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
