"""Jobs on this machine: every one in a process of its own, forked from one that has imported all it needs."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from monai_mil.compare.job import Job
from monai_mil.compare.perform import perform
from monai_mil.files import make_folder, write_json
from monai_mil.runs import import_monai_wholly

_PARENT_DEATH = 1  # PR_SET_PDEATHSIG of Linux


def run_here(jobs: Sequence[Job], workers: int) -> Iterator[Job]:
    """Do jobs, so many at a time, and yield each when it has ended, well or not.

    A process that dies takes its job with it and no other. None of them outlives this one.
    """
    if not jobs:
        return
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a look for GPUs that forks can live with
    import_monai_wholly()
    fork: Any = multiprocessing.get_context("fork")
    waiting, running = list(jobs), dict[BaseProcess, Job]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                process = fork.Process(target=_alone, args=(job, os.getpid()), name=job.words)
                process.start()
                running[process] = job
            wait([process.sentinel for process in running])
            for process in [process for process in running if not process.is_alive()]:
                process.join()
                job = running.pop(process)
                _note_death(job, process.exitcode)
                yield job
    finally:
        for process in running:
            process.kill()


def _alone(job: Job, parent: int) -> None:
    """Do a job in a process of its own; what it says goes to ``log.txt``."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
    if os.getppid() != parent:
        return
    make_folder(job.folder)
    log = os.open(job.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    perform(job)
    sys.stdout.flush()


def _note_death(job: Job, code: int | None) -> None:
    if job.finished() is None and job.failed() is None:
        how = f"signal {-code}" if code and code < 0 else f"code {code}"
        write_json({"reason": f"its process ended with {how}; see log.txt in its folder"}, job.failure)
