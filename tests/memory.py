"""How much memory a step takes."""

import threading
import time
from collections.abc import Callable
from pathlib import Path


def peak_of(step: Callable[[], object]) -> int:
    """Highest private memory above the start while ``step`` runs, in bytes; mapped files do not count."""

    def private() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) << 10

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
    return highest[0]
