"""Embedding with Dask: cases spread over the workers of this machine or of a cluster that shares its disk.

Workers may die. A case whose worker is lost is handed to another one, until it has taken so many down that it is set
aside; where no worker or no scheduler is left, the cases that are left fail by name, and a later run goes on with them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from monai_mil.embedding.attempts import is_suspect, noted_attempts, restore_attempts
from monai_mil.embedding.job import CaseResult, EmbedJob, run_job
from monai_mil.errors import SettingsError
from monai_mil.interrupts import at_hard_end

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster

    from monai_mil.encoders import Encoder

_MOST_SENT = 5  # times that a case is handed to workers which are lost, by no fault of its own
_STARTS = 3
_PATIENCE = 60.0  # seconds without any worker
_LOOK = 5.0  # seconds


def embed_with_dask(
    jobs: Mapping[int, EmbedJob], encoder: Encoder | str, *, workers: int = 1, scheduler: str | None = None
) -> Iterator[tuple[int, CaseResult]]:
    """Embed cases on Dask workers and yield the results as they come, one for every case.

    Args:
        jobs: the cases under their numbers.
        encoder: a name, loaded once by every worker, or an encoder that can be pickled.
        workers: processes to start on this machine where there is no scheduler.
        scheduler: address of a running scheduler, for example ``tcp://host:8786``.

    Raises:
        ModuleNotFoundError: Dask is not installed; says what to install.
        SettingsError: there is no scheduler at the address, or the workers cannot be started.
    """
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("several workers need Dask: pip install 'monai-mil[scale]'") from error

    left = dict(jobs)
    with _interruptible(jobs if scheduler is None else {}):
        for _ in range(_STARTS if scheduler is None else 1):
            with ExitStack() as stack:
                place = stack.enter_context(_local_cluster(workers)) if scheduler is None else scheduler
                try:
                    client = stack.enter_context(_closing(Client(place)))
                except OSError as error:
                    raise SettingsError(
                        f"no Dask scheduler at '{scheduler}' ({error}); look whether it runs"
                    ) from error
                for index, result in _Hand(client, left, encoder).results():
                    del left[index]
                    yield index, result
            if not left:
                return
    yield from ((index, _lost(job, "no worker is left")) for index, job in left.items())


class _Hand:
    """Hands cases to the workers of a client, as long as there are any."""

    def __init__(self, client: Client, jobs: Mapping[int, EmbedJob], encoder: Encoder | str) -> None:
        self._client = client
        self._jobs = dict(jobs)
        self._encoder = encoder
        self._waiting: dict[int, Future] = {}
        self._sent = dict.fromkeys(jobs, 0)
        self._done: SimpleQueue[int] = SimpleQueue()

    def results(self) -> Iterator[tuple[int, CaseResult]]:
        """The results of the cases; it ends before all are there where all workers, or their scheduler, are gone."""
        from monai_mil.embedding.dask_encoder import send_encoder

        with suppress(OSError):
            if not isinstance(self._encoder, str):
                self._encoder = send_encoder(self._client, self._encoder)
            for index in sorted(self._jobs, key=lambda index: is_suspect(self._jobs[index])):
                self._send(index)
        seen = time.monotonic()
        while self._waiting and self._client.status == "running" and time.monotonic() - seen < _PATIENCE:
            try:
                index = self._done.get(timeout=_LOOK)
            except Empty:
                seen = time.monotonic() if self._has_workers() else seen
                continue
            seen = time.monotonic()
            result = self._result(index)
            if result is not None:
                yield index, result

    def _send(self, index: int) -> None:
        self._sent[index] += 1
        future = self._client.submit(_embed, self._jobs[index], encoder=self._encoder, pure=False)
        self._waiting[index] = future
        future.add_done_callback(lambda _: self._done.put(index))

    def _has_workers(self) -> bool:
        with suppress(Exception):
            return bool(self._client.nthreads())
        return False

    def _result(self, index: int) -> CaseResult | None:
        """What became of a case; None where its worker was lost and it is sent again, or cannot be."""
        from distributed import KilledWorker

        future = self._waiting[index]
        try:
            result: CaseResult = future.result(timeout=_PATIENCE)
        except Exception as error:
            if future.status == "error" and not isinstance(error, KilledWorker):
                result = _lost(self._jobs[index], repr(error))
            elif self._client.status != "running":
                return None
            elif self._sent[index] < _MOST_SENT:
                self._send(index)
                return None
            else:
                result = _lost(self._jobs[index], repr(error))
        del self._waiting[index]  # else it would be made again if the worker that keeps the result is lost
        return result


@contextmanager
def _local_cluster(workers: int) -> Iterator[LocalCluster]:
    """Workers on this machine; they are started anew where one is lost meanwhile."""
    from distributed import LocalCluster

    for left in reversed(range(_STARTS)):
        try:
            cluster = LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
            )
            break
        except (OSError, RuntimeError) as error:
            if not left:
                raise SettingsError(f"{workers} workers cannot be started ({error}); try --workers 1") from error
    with _closing(cluster):
        yield cluster


@contextmanager
def _closing(place: Any) -> Iterator[Any]:
    """Close a client or cluster at the end, whatever has become of it."""
    try:
        yield place
    finally:
        with suppress(Exception):
            place.close(timeout=_LOOK)


@contextmanager
def _interruptible(jobs: Mapping[int, EmbedJob]) -> Iterator[None]:
    """Let an interruption, which ends the workers wherever they are, count as no case's death."""
    notes = noted_attempts(jobs.values())
    take_back = partial(restore_attempts, notes)
    try:
        with at_hard_end(take_back):
            yield
    except Exception:
        raise
    except BaseException:
        take_back()
        raise


def _embed(job: EmbedJob, encoder: str) -> CaseResult:
    from monai_mil.embedding.dask_encoder import encoder_here

    result = run_job(job, encoder_here(encoder, job.device), lambda done, total: None, wait=True)
    assert result is not None
    return result


def _lost(job: EmbedJob, reason: str) -> CaseResult:
    message = f"{job.kind.case} '{job.path}': its worker was lost ({reason}); run again to go on where it stopped"
    return CaseResult(job.case_id, str(job.path), "failed", error=message)
