"""Ctrl-C that answers within a second, whatever the process is in the middle of."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a program that Ctrl-C ended."""
_GRACE = 0.7  # seconds for Python to come to an end by itself
_last_words: dict[object, Callable[[], None]] = {}
_ending = threading.Lock()


@contextmanager
def at_hard_end(tidy: Callable[[], None]) -> Iterator[None]:
    """Have ``tidy`` called where :func:`answering_interrupts` ends the process while the block has not ended."""
    key = object()
    _last_words[key] = tidy
    try:
        yield
    finally:
        del _last_words[key]


@contextmanager
def answering_interrupts(advice: str) -> Iterator[None]:
    """End the process with code 130 and one line of ``advice`` on Ctrl-C, at the latest after a second.

    Python sees an interruption only when the C function that it is in returns, and then waits for threads, which may
    be minutes. Files that are written are safe from it, as they are from a kill: they are whole or absent.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(ours, advice), daemon=True, name="interrupts")
    watch.start()
    try:
        yield
    except KeyboardInterrupt:
        _end(advice)
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()
        watch.join()


def _watch(signals: socket.socket, advice: str) -> None:
    """Wait for the interruption, then for the process to end by itself, which it mostly does."""
    with signals:
        while arrived := signals.recv(1):
            if arrived[0] == signal.SIGINT:
                threading.Event().wait(_GRACE)
                _end(advice)


def _end(advice: str) -> None:
    """Say how to go on, and be gone."""
    _ending.acquire()
    for tidy in list(_last_words.values()):
        with suppress(Exception):
            tidy()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        shown = "\x1b[?25h" if os.isatty(2) else ""  # the cursor, which a progress bar hides
        os.write(2, f"{shown}\ninterrupted: {advice}\n".encode())
    os._exit(INTERRUPTED)
