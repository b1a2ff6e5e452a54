"""One job from what came in to ``status.json``: every end has its exit code, and nothing unfinished looks finished."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from monai_mil import __version__
from monai_mil.deploy.job import DeployConf, Exit, Job, JobError, exit_code_of
from monai_mil.deploy.logs import Redaction, told
from monai_mil.deploy.output import STATUS, publish, withdraw, working_folder, write_status
from monai_mil.deploy.prediction import Answer, answer, run_of
from monai_mil.deploy.results import RESEARCH_USE, deliver
from monai_mil.deploy.selection import Source, find_scan, find_slide
from monai_mil.errors import OutputError
from monai_mil.locks import claimed
from monai_mil.runs import Bundle

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Steps:
    """What an application does, one operator a step; each takes what the one before gives.

    Attributes:
        select: finds the series or slide to read.
        predict: has the bundle answer.
        deliver: lays the results down, and gives their folder.
    """

    select: Callable[[], Source]
    predict: Callable[[Source], Answer]
    deliver: Callable[[Answer], Path]


class Execute(Protocol):
    """Runs the steps of a job in order and gives what the last one gave; raises what a step raised."""

    def __call__(self, job: Job, steps: Steps) -> Path | None:
        """See the class."""


def in_order(job: Job, steps: Steps) -> Path:
    """Run the steps one after the other, without MONAI Deploy."""
    return steps.deliver(steps.predict(steps.select()))


def run_job(job: Job, execute: Execute = in_order, redaction: Redaction | None = None) -> Exit:
    """Do a job and leave ``status.json`` in its output folder, whatever comes of it.

    Args:
        job: what is to be done.
        execute: runs the steps; an application of MONAI Deploy, or :func:`in_order`.
        redaction: takes names of files out of what is told; default that of the job's source.

    Returns:
        How it ended. ``status.json`` is missing only where it could not be written (``Exit.OUTPUT``), or where another
        job is at work in the same folder, whose it is then.
    """
    redaction = redaction or Redaction(job.source)
    began = time.time()
    try:
        with claimed(job.output / STATUS), working_folder(job.output) as folder, _temporary_files(folder / "tmp"):
            status = _status(job, execute, folder, redaction)
            status["seconds"] = round(time.time() - began, 3)
            try:
                write_status(job.output, status)
            except OutputError:
                withdraw(job.output)
                raise
    except OutputError as error:
        logger.error("%s", told(error, redaction))
        return Exit.OUTPUT
    return Exit(status["exit_code"])


def _status(job: Job, execute: Execute, folder: Path, redaction: Redaction) -> dict[str, Any]:
    """Do the job; what ``status.json`` is to say of it."""
    status: dict[str, Any] = {
        "format": 1,
        "use": RESEARCH_USE,
        "application": f"monai-mil {job.modality}",
        "version": __version__,
    }
    try:
        bundle = job.bundle()
        status |= {"bundle": bundle.name, "bundle_version": bundle.metadata["version"]}
        steps = _steps(job, bundle, folder, redaction, status)
        results = execute(job, steps)
        if results is None:
            raise JobError(Exit.INFERENCE, "the application ended without a result")
        files = publish(results, job.output)
    except Exception as error:
        cause, message = exit_code_of(error), told(error, redaction)
        logger.error("%s", message)
        return status | {"exit_code": int(cause), "cause": cause.name.lower(), "message": message}
    logger.info("done: %d files", len(files))
    return status | {"exit_code": int(Exit.OK), "cause": Exit.OK.name.lower(), "message": "", "files": files}


def _steps(job: Job, bundle: Bundle, folder: Path, redaction: Redaction, status: dict[str, Any]) -> Steps:
    conf = DeployConf.of(bundle)
    chosen: list[Source] = []

    def select() -> Source:
        if not job.source.exists():
            raise JobError(Exit.USAGE, "the input is not there")
        source = find_scan(job.source, conf.series) if job.modality == "ct" else find_slide(job.source)
        status["selection"] = source.report
        logger.info("selected: %s", _in_words(source.report))
        chosen.append(source)
        return source

    def predict(source: Source) -> Answer:
        objects = conf.objects if source.is_dicom else ()
        formats = (*objects, *conf.pictures)
        return answer(run_of(bundle, conf, source, folder / "run", formats))

    def lay_down(given: Answer) -> Path:
        return deliver(given, chosen[0], job, bundle, folder / "results", redaction)

    return Steps(select, predict, lay_down)


def _in_words(report: Mapping[str, Any]) -> str:
    return f"number {report['chosen']}, {report['reason']}"


@contextmanager
def _temporary_files(folder: Path) -> Iterator[None]:
    """Libraries' temporary files within a folder, and a home where there is none: nothing else may be writable."""
    folder.mkdir()
    places = {"TMPDIR": str(folder)}
    if not os.access(Path.home() if os.environ.get("HOME") else "", os.W_OK):
        places["HOME"] = str(folder)
    before, place = {name: os.environ.get(name) for name in places}, tempfile.tempdir
    os.environ.update(places)
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = place
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})
