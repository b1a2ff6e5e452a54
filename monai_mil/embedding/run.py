"""Runs over a cohort: resumable, safe to kill and to run twice at a time, one bad case stops nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_mil import __version__
from monai_mil.bags import FailedCase, write_failures
from monai_mil.embedding.attempts import is_suspect
from monai_mil.embedding.in_flight import each_in_flight
from monai_mil.embedding.job import CaseKind, CaseResult, EmbedJob, run_job
from monai_mil.embedding.progress import EmbedProgress
from monai_mil.errors import BusyError, CohortError, OutputError
from monai_mil.files import RUN, replacing
from monai_mil.leftovers import remove_leftovers
from monai_mil.locks import sharing

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder


@dataclass(frozen=True)
class EmbedReport:
    """The outcome of an embedding run over a cohort.

    Attributes:
        out_dir: folder of the bags.
        results: one for every slide or scan, in the cohort's order.
        manifest: the same as JSON, with settings and encoder; None if it could not be written.
    """

    out_dir: Path
    results: tuple[CaseResult, ...]
    manifest: Path | None

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        """The cases without a bag."""
        return tuple(result for result in self.results if result.status == "failed")


@dataclass(frozen=True)
class EmbedRun:
    """Runs the jobs of a cohort, in this process or on Dask workers, and reports on all.

    The cases that failed stand in ``<out_dir>/failed.csv`` too, which is there if, and only if, there are any.

    Attributes:
        kind: slides or scans.
        out_dir: folder of the bags.
        encoder: the encoder, loaded.
        shared_encoder: what Dask's workers get: its name, or itself.
        settings: a frozen dataclass, for the manifest.
        progress: show a bar, and at the end what failed.
        workers: processes on this machine.
        scheduler: address of a Dask scheduler.
    """

    kind: CaseKind
    out_dir: Path
    encoder: Encoder
    shared_encoder: Encoder | str
    settings: Any
    progress: bool = True
    workers: int = 1
    scheduler: str | None = None

    def __call__(self, jobs: Mapping[int, EmbedJob], rejected: Mapping[int, CaseResult]) -> EmbedReport:
        """Do the jobs under their numbers; ``rejected`` are the results of the numbers that have none.

        Raises:
            BusyError: a run of other settings is at work in the same folder; names it.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(sharing(self.out_dir / ".partial" / "runs", self._digest(jobs), str(self.out_dir)))
            except BusyError:
                raise
            except OutputError:  # nothing can be written there, which the result of every case tells
                pass
            return self._run(jobs, rejected)

    def _digest(self, jobs: Mapping[int, EmbedJob]) -> str:
        """What tells runs whose bags must not stand in one folder: settings, storage and encoder."""
        encoder = (self.encoder.name, self.encoder.digest, self.encoder.width, self.encoder.grid)
        told = [self.kind.case, encoder, asdict(self.settings), sorted({job.storage for job in jobs.values()})]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def _run(self, jobs: Mapping[int, EmbedJob], rejected: Mapping[int, CaseResult]) -> EmbedReport:
        remove_leftovers(self.out_dir)
        results = dict(rejected)
        manifest = _Manifest(self)
        with EmbedProgress(self.kind, len(jobs) + len(rejected), enabled=self.progress) as bar:
            for result in rejected.values():
                bar.finish(result)
            for index, result in self._finished(jobs, bar):
                results[index] = result
                bar.finish(result)
                if result.status != "kept":
                    manifest.write(results)
        ordered = tuple(results[index] for index in sorted(results))
        report = EmbedReport(self.out_dir, ordered, manifest.write(results))
        self._write_failures(report)
        return report

    def _write_failures(self, report: EmbedReport) -> None:
        """``failed.csv``, one row a failed case; like the manifest it must not hide the results where it cannot be."""
        failures = [FailedCase(one.case_id, one.cause or "failed", one.error or "") for one in report.failed]
        with contextlib.suppress(OutputError):
            write_failures(self.out_dir / "failed.csv", f"{self.kind.case}_id", failures)

    def _finished(self, jobs: Mapping[int, EmbedJob], bar: EmbedProgress) -> Iterator[tuple[int, CaseResult]]:
        if self.workers > 1 or self.scheduler is not None:
            from monai_mil.embedding.dask import embed_with_dask

            return embed_with_dask(jobs, self.shared_encoder, workers=self.workers, scheduler=self.scheduler)
        return _in_turn(jobs, self.encoder, bar)


def reject(kind: CaseKind, cases: Sequence[tuple[str, Path | None]]) -> dict[int, CaseResult]:
    """Cases (name, path) that cannot have a bag: without a file, or under a name that is taken."""
    rejected: dict[int, CaseResult] = {}
    first: dict[str, Path | None] = {}
    for index, (name, path) in enumerate(cases):
        if path is None:
            error = f"{kind.case} '{name}': the table has no path; fill the column 'path'"
        elif name in first:
            error = f"{kind.case} '{path}': the name '{name}' is taken by '{first[name]}'; rename it or give a table"
        else:
            first[name] = path
            continue
        rejected[index] = CaseResult(name, str(path or ""), "failed", error=error, cause=CohortError.status)
    return rejected


def _in_turn(jobs: Mapping[int, EmbedJob], encoder: Encoder, bar: EmbedProgress) -> Iterator[tuple[int, CaseResult]]:
    """Do the cases nobody works on or died in, then wait for the others' and do what they did not finish.

    The latter come one by one: a case in which a process died is blamed for what happens then.
    """
    later: dict[int, EmbedJob] = {}

    def begin(case: tuple[int, EmbedJob]) -> CaseResult | None:
        job = case[1]
        return None if is_suspect(job) else run_job(job, encoder, bar.case(job.case_id), wait=False)

    ahead = max((job.ahead for job in jobs.values()), default=0)
    for (index, job), result in each_in_flight(begin, jobs.items(), ahead):
        if result is None:
            later[index] = job
        else:
            yield index, result
    for index, job in later.items():
        result = run_job(job, encoder, bar.case(job.case_id), wait=True)
        assert result is not None  # who waits gets the lock
        yield index, result


class _Manifest:
    """The run's record in ``<out_dir>/runs``, written anew after every case so that a killed run leaves one too."""

    def __init__(self, run: EmbedRun) -> None:
        started = datetime.now(UTC)
        self._kind = run.kind
        self._path = run.out_dir / "runs" / f"{started:%Y%m%dT%H%M%S}-{os.getpid()}-{RUN}.json"
        self._header = {
            "version": __version__,
            "started": started.isoformat(timespec="seconds"),
            "encoder": run.encoder.name,
            "encoder_digest": run.encoder.digest,
            "settings": asdict(run.settings),
        }

    def write(self, results: Mapping[int, CaseResult]) -> Path | None:
        """Write what is known; None if that fails, which must not hide the results themselves."""
        record = self._header | {
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            self._kind.cases: [self._case(results[index]) for index in sorted(results)],
        }
        try:
            with replacing(self._path) as partial:
                partial.write_text(json.dumps(record, indent=4) + "\n")
        except OutputError:
            return None
        return self._path

    def _case(self, result: CaseResult) -> dict[str, Any]:
        words = {"case_id": f"{self._kind.case}_id", "instances": self._kind.instances}
        return {words.get(name, name): value for name, value in asdict(result).items()}
