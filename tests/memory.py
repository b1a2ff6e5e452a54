"""How much memory a step takes."""

import ctypes
import threading
import time
from collections.abc import Callable


class MallInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def peak_of(step: Callable[[], object]) -> int:
    """Most bytes above the start that are allocated at once while ``step`` runs; mapped files do not count.

    What is allocated is asked for, not what is resident: scripts/test.sh lets a process keep what was freed.
    """
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = MallInfo

    def allocated() -> int:
        info = mallinfo()
        return info.uordblks + info.hblkhd

    start, highest, done = allocated(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            highest[0] = max(highest[0], allocated() - start)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    step()
    done.set()
    watcher.join()
    return highest[0]
