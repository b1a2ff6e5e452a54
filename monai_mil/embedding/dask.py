"""Embedding with Dask: cases spread over the workers of this machine or of a cluster that shares its disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import lru_cache
from typing import TYPE_CHECKING

from monai_mil.embedding.job import CaseResult, EmbedJob, run_job
from monai_mil.encoders import get_encoder

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder

_load = lru_cache(maxsize=1)(get_encoder)


def embed_with_dask(
    jobs: Mapping[int, EmbedJob], encoder: Encoder | str, *, workers: int = 1, scheduler: str | None = None
) -> Iterator[tuple[int, CaseResult]]:
    """Embed cases on Dask workers and yield the results as they come.

    Args:
        jobs: the cases under their numbers.
        encoder: a name, loaded once by every worker, or an encoder that can be pickled.
        workers: processes to start on this machine where there is no scheduler.
        scheduler: address of a running scheduler, for example ``tcp://host:8786``.

    Raises:
        ModuleNotFoundError: Dask is not installed; says what to install.
    """
    try:
        from distributed import Client, LocalCluster, as_completed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("several workers need Dask: pip install 'monai-mil[scale]'") from error

    with ExitStack() as stack:
        if scheduler is None:
            local = {"dashboard_address": None, "silence_logs": logging.ERROR}
            cluster = stack.enter_context(LocalCluster(n_workers=workers, threads_per_worker=1, **local))
            client = stack.enter_context(Client(cluster))
        else:
            client = stack.enter_context(Client(scheduler))
        shared = encoder if isinstance(encoder, str) else client.scatter(encoder, broadcast=True)
        futures = client.map(_embed, list(jobs.values()), encoder=shared, pure=False)
        numbers = {future.key: index for index, future in zip(jobs, futures, strict=True)}
        for future in as_completed(futures):
            index = numbers[future.key]
            lost = future.exception()
            yield index, future.result() if lost is None else _lost(jobs[index], lost)


def _embed(job: EmbedJob, encoder: Encoder | str) -> CaseResult:
    loaded = _load(encoder, device=job.device) if isinstance(encoder, str) else encoder
    result = run_job(job, loaded, lambda done, total: None, wait=True)
    assert result is not None
    return result


def _lost(job: EmbedJob, error: BaseException) -> CaseResult:
    message = f"{job.kind.case} '{job.path}': its worker was lost ({error!r}); run again to go on where it stopped"
    return CaseResult(job.case_id, str(job.path), "failed", error=message)
