"""A server on loopback, started as a user starts it, and what it works on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from monai_mil.label import LabelStore
from tests.conftest import ROOT
from tests.label.clients import QuPath


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass
class Served:
    """A server and what it works on.

    Attributes:
        app: folder of the application; the server's words go to ``said.log`` in it.
        studies: folder of images, or the address of a store.
        stock: of MONAI Label's own application, what follows ``--conf``; None starts ours.
        environment: further variables.
        port: where it listens.
    """

    app: Path
    studies: Path | str
    stock: tuple[tuple[str, str], ...] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.stock is None:
            command = ["-m", "monai_mil.cli", "label", "start", str(self.app)]
        else:
            conf = [word for pair in self.stock for word in ("--conf", *pair)]
            command = ["-m", "monailabel.main", "start_server", "--app", str(self.app), "--host", "127.0.0.1", *conf]
        beside_python = str(Path(sys.executable).parent)
        with (self.app / "said.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--studies", str(self.studies), "--port", str(self.port)],
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "OMP_NUM_THREADS": "1",
                    "PATH": f"{beside_python}:{os.environ['PATH']}",
                    **self.environment,
                },
                start_new_session=True,
            )
        for _ in range(1500):
            time.sleep(0.2)
            assert self.process.poll() is None, self.said[-3000:]
            try:
                if self.qupath.send("GET", "/info/").status == 200:
                    return
            except OSError:
                continue
        self.kill()
        raise AssertionError("the server did not answer in five minutes")

    def stop(self) -> None:
        """End it, and all that it started, as its user does: it has a minute to leave."""
        try:
            if self.process is not None and self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGTERM)
                self.process.wait(timeout=60)
        finally:
            self.kill()

    def kill(self, *, with_children: bool = True) -> None:
        """End it, and all that it started unless told otherwise, as a power cut does."""
        if self.process is not None:
            with suppress(ProcessLookupError):  # nothing of it is left
                (os.killpg if with_children else os.kill)(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def said(self) -> str:
        return (self.app / "said.log").read_text(errors="replace")

    def weights(self, model: str) -> Path:
        return self.app / "model" / model / "models" / "model.pt"

    @property
    def qupath(self) -> QuPath:
        return QuPath(self.port)

    @property
    def store(self) -> LabelStore:
        return LabelStore(Path(self.studies) / ".mil")

    def ended(self, jobs: str) -> dict:
        """The last job of a kind when it has ended; empty where there was none."""
        for _ in range(1200):
            task = self.qupath.send("GET", jobs).json
            if task.get("status") not in ("SUBMITTED", "RUNNING"):
                return task
            time.sleep(0.5)
        raise AssertionError(f"{jobs} did not end")
