"""Cases in flight: while one is encoded the next is opened and cut, and the one before it is written."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import TypeVar

from monai_mil.embedding.attempts import resting

Job = TypeVar("Job")
Result = TypeVar("Result")


class _Ended(BaseException):
    """The run ends: whoever works on a case leaves it as a case that was interrupted."""


class _Encoder:
    """The encoder that all cases of a run share, one after the other; who comes first has it first."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._queue: deque[object] = deque()
        self._has_ended = False

    def take(self) -> object:
        """Wait for it; what comes back is to be given to :meth:`give_back`."""
        ticket = object()
        with self._change:
            self._queue.append(ticket)
            try:
                if self._queue[0] is not ticket:
                    with resting():
                        self._change.wait_for(lambda: self._has_ended or self._queue[0] is ticket)
                self.check()
            except BaseException:
                self.give_back(ticket)
                raise
        return ticket

    def give_back(self, ticket: object) -> None:
        """Let the next one have it."""
        with self._change:
            self._queue.remove(ticket)
            self._change.notify_all()

    def end(self) -> None:
        """Nobody is to go on."""
        with self._change:
            self._has_ended = True
            self._change.notify_all()

    def check(self) -> None:
        if self._has_ended:
            raise _Ended


_shared: ContextVar[_Encoder | None] = ContextVar("shared encoder", default=None)


@contextmanager
def encoding() -> Iterator[None]:
    """Have the encoder to oneself, after waiting for the case that has it; at once where cases come one by one."""
    shared = _shared.get()
    if shared is None:
        yield
        return
    ticket = shared.take()
    try:
        yield
    finally:
        shared.give_back(ticket)


def still_wanted() -> None:
    """Called once in a while by who encodes: ends the case where the run has ended."""
    shared = _shared.get()
    if shared is not None:
        shared.check()


def each_in_flight(work: Callable[[Job], Result], jobs: Iterable[Job], ahead: int) -> Iterator[tuple[Job, Result]]:
    """Do the jobs on threads of their own, ``ahead + 1`` of them at a time, begun in order.

    What they do within :func:`encoding` one alone does at a time. With ``ahead`` 0 this is a loop.

    Args:
        work: does one job.
        jobs: in order.
        ahead: how many jobs may be begun beside the one that is encoded.

    Yields:
        Every job and what ``work`` gave, in order.

    Raises:
        BaseException: whatever ``work`` raises, once the other jobs that are in flight have left off.
    """
    if ahead < 1:
        for job in jobs:
            yield job, work(job)
        return
    shared = _Encoder()
    begun: deque[tuple[Job, Future[Result]]] = deque()
    working: set[Future[Result]] = set()
    pool = ThreadPoolExecutor(ahead + 1, thread_name_prefix="case")

    def begin(job: Job) -> Future[Result]:
        context = copy_context()
        context.run(_shared.set, shared)
        return pool.submit(context.run, work, job)

    try:
        for job in jobs:
            if len(working) > ahead:
                done, working = wait(working, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()  # an error ends the run at once, whose turn it is or not
            while begun and begun[0][1].done():
                first, future = begun.popleft()
                yield first, future.result()
            begun.append((job, begin(job)))
            working.add(begun[-1][1])
        for first, future in begun:
            yield first, future.result()
    finally:
        shared.end()
        pool.shutdown(wait=True, cancel_futures=True)
