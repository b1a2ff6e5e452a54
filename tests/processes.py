"""Python processes that tests start: most are forks of one that has imported MONAI already, which saves six seconds."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import filelock

from tests.conftest import ROOT

_servers: list[socket.socket] = []


def environment_of(**more: Any) -> dict[str, str]:
    """The environment of every process that a test starts: this project first, and one thread."""
    added = {"PYTHONPATH": ROOT, "OMP_NUM_THREADS": 1} | more
    return os.environ | {name: str(value) for name, value in added.items()}


@contextmanager
def fork_server() -> Iterator[None]:
    """A process that :func:`start` can fork from while this lasts; pytest's workers share one."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    address = f"\0monai-mil-forks-{session}"  # Linux's own name space: no file, whose path might be too long
    with filelock.FileLock(Path(tempfile.gettempdir(), f"forks-{session}.lock")):
        ours, server = _connected(address), None
        if ours is None:
            ours, server = _started(address)
    with ours:
        _servers.append(ours)
        yield
        _servers.remove(ours)
        ours.shutdown(socket.SHUT_RDWR)  # closing is not enough: processes that tests forked may hold it too
    if server is not None:
        with suppress(subprocess.TimeoutExpired):  # it serves the other workers until they have done
            server.wait(timeout=60)


def _connected(address: str) -> socket.socket | None:
    """The way to a process to fork from, if there is one that is not just leaving."""
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours.connect(address)
        if ours.recv(100):
            return ours
    except OSError:
        pass
    ours.close()
    return None


def _started(address: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    environment = environment_of()
    del environment["PYTHONPATH"]
    with tempfile.TemporaryFile("w+") as said, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(address)
        door.listen()
        command = [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(door.fileno())]
        streams = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said}
        server = subprocess.Popen(command, env=environment, pass_fds=[door.fileno()], **streams)
        door.close()
        ours = _connected(address)
        if ours is None:
            said.seek(0)
            raise RuntimeError(f"the process to fork from did not start:\n{said.read()[-3000:]}")
    return ours, server


class Process:
    """A fork at work: what the tests need of :class:`subprocess.Popen`."""

    def __init__(self, arguments: Sequence[str], answers: socket.socket, streams: Sequence[int]) -> None:
        self.arguments = arguments
        self.returncode: int | None = None
        self._answers, self._streams = answers, streams
        self.pid = self._answer()

    def _answer(self) -> int:
        answer = self._answers.recv(100)
        if not answer:
            raise RuntimeError("the process to fork from has ended")
        return int(answer)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, of a process ended by a signal the negative number of the signal."""
        if self.returncode is None:
            self._answers.settimeout(timeout)
            try:
                self.returncode = self._answer()
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(list(self.arguments), timeout or 0) from None
            self._answers.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        try:
            return self.wait(timeout=0)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it may end just now
                os.kill(self.pid, signal.SIGKILL)

    def result(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """Its exit code and all that it wrote, once it has ended; it is killed at the end of the time, in seconds."""
        try:
            code = self.wait(timeout)
        finally:
            self.kill()
        written = []
        for descriptor in self._streams:
            with os.fdopen(descriptor, errors="replace") as stream:
                stream.seek(0)
                written.append(stream.read())
        return subprocess.CompletedProcess(list(self.arguments), code, *written)


def start(*arguments: Any, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> Process:
    """``python ARGUMENTS`` as a fork: a module behind ``-m``, code behind ``-c``, or a script, in a folder.

    The fork has this session's environment, or the given one, and nothing else of the test: its import path, random
    numbers and streams are those of a process of its own.
    """
    if not _servers:
        raise RuntimeError("nothing to fork from; the test needs the fixture 'fork_server'")
    words = [str(argument) for argument in arguments]
    request = {"arguments": words, "folder": str(folder or Path.cwd())}
    request["environment"] = environment_of() if environment is None else environment
    streams = [os.memfd_create(name) for name in ("stdout", "stderr")]
    for stream in streams:  # what two processes write at once must not overwrite each other
        fcntl.fcntl(stream, fcntl.F_SETFL, os.O_APPEND)
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        socket.send_fds(_servers[-1], [json.dumps(request).encode()], [theirs.fileno(), *streams])
    return Process(words, ours, streams)


def run(*arguments: Any, timeout: float = 540, **options: Any) -> subprocess.CompletedProcess[str]:
    """What :func:`start` starts, at its end."""
    return start(*arguments, **options).result(timeout)


def run_alone(
    *arguments: Any, folder: Path | None = None, environment: Mapping[str, str] | None = None, timeout: float = 540
) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` in an interpreter of its own, for tests of the start itself."""
    command = [sys.executable, *map(str, arguments)]
    environment = environment_of() if environment is None else environment
    return subprocess.run(command, cwd=folder, env=environment, timeout=timeout, capture_output=True, text=True)


def environment_of_launcher() -> dict[str, str]:
    """The environment of a program that starts ``PYTHON_EXEC`` as its Python, each of which is a fork."""
    address = _servers[-1].getpeername().decode().removeprefix("\0")
    return environment_of(PYTHON_EXEC=Path(__file__).with_name("forked_python.py"), FORK_SERVER=address)


def run_by_torchrun(*arguments: Any, processes: int = 2, **options: Any) -> subprocess.CompletedProcess[str]:
    """``torchrun ARGUMENTS``, tried twice as :func:`run_together` is; it and the Pythons it starts are forks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc_per_node={processes}"]
    return _twice(lambda: run(*launcher, *arguments, environment=environment_of_launcher(), **options))


class Forks:
    """In place of the module ``subprocess`` where a program starts Python: forks, which write where they are told."""

    STDOUT = subprocess.STDOUT

    @staticmethod
    def run(
        command: Sequence[str],
        *,
        stdout: TextIO,
        stderr: int,
        check: bool,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        assert (command[0], stderr, check) == (sys.executable, subprocess.STDOUT, False)
        done = run(*command[1:], folder=cwd, environment=env)
        stdout.write(done.stdout + done.stderr)
        return done


def run_together(
    *arguments: Any, processes: int = 2, timeout: float = 270, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Processes of one distributed run, forked: the first exit code that is not 0, and what all of them wrote.

    A run that fails is tried a second time: gloo itself now and then aborts a process that ends.
    """
    return _twice(lambda: _run_ranks(arguments, processes, timeout, options))


def _twice(once: Callable[[], subprocess.CompletedProcess[str]]) -> subprocess.CompletedProcess[str]:
    done = once()
    return done if done.returncode == 0 else once()


def _run_ranks(
    arguments: Sequence[Any], processes: int, timeout: float, options: dict[str, Any]
) -> subprocess.CompletedProcess[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    sizes = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    ranks = [
        start(*arguments, environment=environment_of(**place, **sizes, RANK=rank, LOCAL_RANK=rank), **options)
        for rank in range(processes)
    ]
    deadline = time.monotonic() + timeout
    while any(rank.poll() is None for rank in ranks):
        if any(rank.returncode for rank in ranks) or time.monotonic() > deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(0.01)
    results = [rank.result(timeout) for rank in ranks]
    code = next((result.returncode for result in results if result.returncode), 0)
    texts = ("".join(getattr(result, stream) for result in results) for stream in ("stdout", "stderr"))
    return subprocess.CompletedProcess(results[0].args, code, *texts)
