"""Memory of one step in a process of its own: the growth of its peak over what it held with the input in place."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path


def resident(name: str) -> float:
    """Megabytes of ``VmRSS`` (now), ``RssAnon`` (of it, what no file holds) or ``VmHWM`` (peak) of this process."""
    (kilobytes,) = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024 / 1e6


def peak_growth(step: Callable[[], object]) -> float:
    """Megabytes by which ``step`` raises this process's peak over what it holds now."""
    ctypes.CDLL(None).malloc_trim(0)  # what the heap has free would hide growth
    base = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # lets the peak start from here
    step()
    return resident("VmHWM") - base


def private_peak_growth(step: Callable[[], object]) -> float:
    """Likewise of what is this process's own: pages of mapped files, which go when others need them, do not count."""
    ctypes.CDLL(None).malloc_trim(0)
    base, highest, done = resident("RssAnon"), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            highest[0] = max(highest[0], resident("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        step()
    finally:
        done.set()
        watcher.join()
    return highest[0] - base


def in_a_process(module: str, *arguments: str, **environment: str) -> float:
    """The number that ``python -m module arguments`` prints last, with these environment variables."""
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    result = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return float(result.stdout.split()[-1])
