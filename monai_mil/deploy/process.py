"""What a process needs before it imports MONAI beside MONAI Deploy's SDK, in a container as anywhere."""

from __future__ import annotations

import ctypes
import getpass
import os
import sys
from contextlib import suppress
from pathlib import Path

_CUDA_RUNTIME = "libcudart.so.13"


def prepare_process() -> None:
    """Make ``import monai`` work: as a user whom no passwd file knows, and with holoscan on a machine without CUDA.

    MONAI asks for the user's name when it is imported; holoscan needs the CUDA runtime even where there is no GPU, and
    declares it nowhere: the wheel ``nvidia-cuda-runtime`` has it. Nothing is loaded where there is no such wheel.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = "monai-mil"
    os.environ.setdefault("HOLOSCAN_LOG_LEVEL", "ERROR")
    runtime = cuda_runtime()
    if runtime is not None:
        with suppress(OSError):  # of another machine; importing holoscan tells
            ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)


def cuda_runtime() -> Path | None:
    """The CUDA runtime of the wheel ``nvidia-cuda-runtime``, where it is installed."""
    found = (Path(place) / "nvidia" / "cu13" / "lib" / _CUDA_RUNTIME for place in sys.path)
    return next((path for path in found if path.is_file()), None)
