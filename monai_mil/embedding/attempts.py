"""Attempts at a case, noted before they begin: a note that nobody has taken away says that its process died in it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from monai_mil.errors import SetAsideError
from monai_mil.files import parse_json, write_error
from monai_mil.interrupts import at_hard_end

if TYPE_CHECKING:
    from monai_mil.embedding.job import EmbedJob

MOST_DEATHS = 2
"""A case that took its process down so often, one after the other at the same place, is set aside."""


@dataclass(frozen=True)
class _Note:
    """What lies beside the bags while a case is worked on.

    Attributes:
        attempts: the one that is going on, and those before it that died at ``place``.
        place: bytes of the case's unfinished files where the attempt before this one died; None for the first attempt.
    """

    attempts: int
    place: int | None


def is_suspect(job: EmbedJob) -> bool:
    """Whether somebody works on the case just now, or died in it."""
    return job.attempt.exists()


def noted_attempts(jobs: Iterable[EmbedJob]) -> list[tuple[EmbedJob, _Note | None]]:
    """The jobs with what is noted of each, for :func:`restore_attempts`."""
    return [(job, _read(job.attempt)) for job in jobs]


def restore_attempts(noted: Iterable[tuple[EmbedJob, _Note | None]]) -> None:
    """Note what was noted before; what was begun since counts as not begun."""
    for job, note in noted:
        _restore(job, note)


@contextmanager
def attempted(job: EmbedJob) -> Iterator[None]:
    """Note an attempt at a case whose lock is held; the note goes when the attempt ends, however it does, but by death.

    A death counts again only where the case got no further than at the death before: who kills runs at random has
    slides set aside by bad luck alone, not as a rule. An attempt ended by Ctrl-C counts as none.

    Raises:
        SetAsideError: the case has taken its process down :data:`MOST_DEATHS` times, and the job is no ``retry``.
        OutputError: the note cannot be written.
    """
    before, place = _read(job.attempt), _place(job)
    deaths = 0 if before is None else before.attempts if before.place in (None, place) else 1
    if deaths >= MOST_DEATHS and not job.retry:
        raise SetAsideError(
            f"{job.kind.case} '{job.path}': set aside, for the process died {deaths} times while it worked on it (no "
            "memory left, a crash within a library, or somebody ended it); look at the file and the memory, then run "
            "again with --retry"
        )
    earlier = min(deaths, MOST_DEATHS - 1)  # asked for again, it has one attempt
    try:
        with _in_flight(alone=bool(earlier)), at_hard_end(partial(_restore, job, before)):
            note = _Note(earlier + 1, place if earlier else None)
            _write(job.attempt, note)
            token = _going_on.set((job, before, note))
            try:
                yield
            finally:
                _going_on.reset(token)
    except Exception:
        job.attempt.unlink(missing_ok=True)
        raise
    except BaseException:
        _restore(job, before)
        raise
    job.attempt.unlink(missing_ok=True)


_going_on: ContextVar[tuple[EmbedJob, _Note | None, _Note] | None] = ContextVar("attempt", default=None)


@contextmanager
def resting() -> Iterator[None]:
    """Nothing is done for the case just now: a process that dies meanwhile does not die in it."""
    attempt = _going_on.get()
    if attempt is None:
        yield
        return
    job, before, note = attempt
    _restore(job, before)
    yield
    _write(job.attempt, note)


def _restore(job: EmbedJob, note: _Note | None) -> None:
    if note is None:
        job.attempt.unlink(missing_ok=True)
    else:
        _write(job.attempt, note)


_change = threading.Condition()
_working: list[bool] = []  # for every case this process works on: whether it must be alone


@contextmanager
def _in_flight(*, alone: bool) -> Iterator[None]:
    """Wait until a case in which a process died has this one for itself: if it dies again, no other case is blamed."""
    with _change:
        _change.wait_for(lambda: not _working if alone else True not in _working)
        _working.append(alone)
    try:
        yield
    finally:
        with _change:
            _working.remove(alone)
            _change.notify_all()


def _place(job: EmbedJob) -> int:
    """How far the case has come, of what a later attempt goes on from."""
    return sum(file.stat().st_size for file in job.unfinished if file.exists())


def _read(path: Path) -> _Note | None:
    try:
        return _Note(**parse_json(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):  # cut by a loss of power
        return _Note(1, None)


def _write(path: Path, note: _Note) -> None:
    """Written straight away: one that a loss of power has cut counts as a note all the same."""
    try:
        path.write_text(json.dumps(asdict(note)))
    except OSError as error:
        raise write_error(path, error) from error
