"""How much memory a step takes."""

import ctypes
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

M_MMAP_MAX = -4
"""``mallopt``'s name of how many pieces of memory may be apart from the heap."""


def peak_of(step: Callable[[], object]) -> int:
    """Highest private memory above the start while ``step`` runs, in bytes; mapped files do not count."""

    def private() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) << 10

    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)  # memory that is free, but kept, would hide what the step takes
    libc.mallopt(M_MMAP_MAX, 65536)  # glibc's own: large arrays are handed back at once, whatever test.sh says
    start, highest, done = private(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            highest[0] = max(highest[0], private() - start)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    done.set()
    watcher.join()
    libc.mallopt(M_MMAP_MAX, int(os.environ.get("MALLOC_MMAP_MAX_", 65536)))
    return highest[0]
