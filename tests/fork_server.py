"""A Python process that has imported what most runs need and forks for each of them: ``python fork_server.py SOCKET``.

Started by :mod:`tests.processes`, which asks for runs through that socket. It imports nothing of this project: every
run finds ``monai_mil`` by its own path.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import inspect
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

LIBRARIES = ("monai.bundle", "torch._dynamo", "sklearn.metrics", "matplotlib.pyplot")
INSTALLED = sys.path[1:]  # without the folder of this file


def main() -> None:
    gc.disable()  # imports make no garbage worth looking for
    for library in LIBRARIES:
        importlib.import_module(library)
    remember_components()
    gc.freeze()
    gc.enable()
    with socket.socket(fileno=int(sys.argv[1])) as door:
        run = serve(door)
    if run is not None:
        leave(exit_code(run))


def remember_components() -> None:
    """Look through MONAI's modules for classes once: every parser in a fork does it, and finds the same in these."""
    from monai.bundle.config_item import ComponentLocator

    locate = ComponentLocator._find_classes_or_functions
    known = {name: locate(ComponentLocator(), name) for name in ComponentLocator()._find_module_names()}

    def remembered(self: ComponentLocator, names: list[str]) -> dict[str, list[str]]:
        table: dict[str, list[str]] = {}
        for name in names:
            for component, modules in (known[name] if name in known else locate(self, name)).items():
                table.setdefault(component, []).extend(modules)
        return table

    ComponentLocator._find_classes_or_functions = remembered


def serve(door: socket.socket) -> dict[str, Any] | None:
    """Fork for every request and answer with the process's number, later with its exit code.

    Returns None once all who came through the door have gone; in a fork, the run that it is to become.
    """
    running: dict[int, tuple[int, socket.socket]] = {}
    clients: set[socket.socket] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(door, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is door:
                    client = door.accept()[0]
                    client.send(b"ready")
                    clients.add(client)
                    selector.register(client, selectors.EVENT_READ)
                    continue
                if key.fileobj not in clients:
                    process, answers = running.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    tell(answers, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
                    answers.close()
                    continue
                client = cast(socket.socket, key.fileobj)
                message, descriptors, _, _ = socket.recv_fds(client, 1 << 20, 3)
                if not message:
                    selector.unregister(client)
                    clients.remove(client)
                    client.close()
                    continue
                process = os.fork()
                if process == 0:
                    for descriptor, (_, answers) in running.items():
                        os.close(descriptor)
                        answers.close()
                    for client in clients:
                        client.close()
                    os.close(descriptors[0])
                    return {**json.loads(message), "streams": descriptors[1:]}
                for stream in descriptors[1:]:
                    os.close(stream)
                answers = socket.socket(fileno=descriptors[0])
                tell(answers, process)
                ended = os.pidfd_open(process)
                running[ended] = process, answers
                selector.register(ended, selectors.EVENT_READ)
            if not clients:
                for process, _ in running.values():  # nobody can wait for them any more
                    os.kill(process, signal.SIGKILL)
                return None


def tell(answers: socket.socket, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for this run any more
        answers.send(str(number).encode())


def become(run: dict[str, Any]) -> None:
    """Do what ``python ARGUMENTS`` does in a process of its own."""
    for descriptor, stream in enumerate(run["streams"], start=1):
        os.dup2(stream, descriptor)
        os.close(stream)
    os.chdir(run["folder"])
    os.environ.clear()
    os.environ.update(run["environment"])
    draw_seeds()
    inspect.stack = stack_without_sources
    first, *rest = run["arguments"]
    sys.path[:] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path] + INSTALLED
    if first == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.path.insert(0, "")
        sys.argv[:] = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(first).parent))
        sys.argv[:] = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def exit_code(run: dict[str, Any]) -> int:
    """Become the run; what it ends with, as the interpreter tells it."""
    try:
        become(run)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def leave(code: int) -> None:
    """End without taking apart what was imported before the fork, which costs half a second."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def stack_without_sources(context: int = 1) -> list[inspect.FrameInfo]:
    """``inspect.stack`` without lines of code, for which every command looks through 5,000 modules for 0.2 s."""
    found, frame = [], inspect.currentframe()
    while frame := frame and frame.f_back:
        code = frame.f_code
        found.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, None, None))
    return found


def draw_seeds() -> None:
    """Seed anew what drew its seed when it was imported, so that two runs agree only if they are told to."""
    import numpy as np
    import torch
    from monai.transforms import Randomizable

    random.seed()
    np.random.seed()  # noqa: NPY002
    torch.seed()
    Randomizable.R.seed()


if __name__ == "__main__":
    main()
