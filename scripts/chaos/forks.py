"""Processes to break: forks of one that has imported everything, which cost milliseconds instead of seconds."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MODULES = (
    *("monai.bundle", "torch._dynamo", "sklearn.metrics", "matplotlib.pyplot", "tifffile", "pydicom", "nibabel"),
    *("monai_mil.cli", "monai_mil.embedding", "monai_mil.encoders", "monai_mil.slides", "monai_mil.scans"),
    *("monai_mil.bags", "monai_mil.cohorts", "monai_mil.heatmaps", "monai_mil.reports", "monai_mil.runs"),
    *("monai_mil.savers", "monai_mil.training", "monai_mil.networks", "monai_mil.losses", "monai_mil.synthetic"),
)


def import_everything() -> None:
    """Have in this process what its forks need, and nothing running in the background."""
    import gc
    import importlib

    import torch

    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()


@dataclass
class Fork:
    """A fork at work.

    Attributes:
        process: its number; it leads a session of its own.
        said: the file that holds what it wrote.
    """

    process: int
    said: Path
    code: int | None = None

    def wait(self, seconds: float) -> int | None:
        """The exit code, of a process ended by a signal the negative number of the signal; None where it runs on."""
        end = time.monotonic() + seconds
        while self.code is None:
            ended, status = os.waitpid(self.process, os.WNOHANG)
            if ended:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                return None
            else:
                time.sleep(0.002)
        return self.code

    def kill(self, *, with_children: bool = False) -> None:
        """End it as a power cut would; its worker processes too, or not, as ``kill -9`` by somebody's hand."""
        with suppress(ProcessLookupError):
            if with_children:
                os.killpg(self.process, signal.SIGKILL)
            if self.code is None:
                os.kill(self.process, signal.SIGKILL)
        self.wait(60)

    @property
    def words(self) -> str:
        return self.said.read_text(errors="replace") if self.said.exists() else ""


def start(work: Callable[[], object], said: Path, *, memory: int | None = None) -> Fork:
    """Do ``work`` in a fork, all that it prints in the file ``said``; ``memory`` is its address space, in bytes."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return Fork(process, said)
    code = 1
    try:
        _become(said, memory)
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _become(said: Path, memory: int | None) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, place, mode in ((0, os.devnull, os.O_RDONLY), (1, said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        handle = os.open(place, mode | os.O_APPEND if stream else mode, 0o644)
        os.dup2(handle, stream)
        os.close(handle)
    os.dup2(1, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def monai_mil(*words: object) -> Callable[[], None]:
    """What ``monai-mil WORDS`` does, for :func:`start`."""

    def work() -> None:
        from monai_mil.cli import main

        sys.argv[:] = ["monai-mil", *map(str, words)]
        main()

    return work


def run(work: Callable[[], object], said: Path, seconds: float = 600) -> Fork:
    """Do ``work`` in a fork to its end, at most so many seconds."""
    fork = start(work, said)
    if fork.wait(seconds) is None:
        fork.kill(with_children=True)
    return fork
