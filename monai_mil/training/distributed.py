"""Networks inside parallel wrappers, and the end of a distributed run."""

from __future__ import annotations

import time
from typing import Any

import torch.distributed as dist
from torch import nn


def finish_distributed() -> None:
    """Leave the process group, if there is one; the ``finalize`` of a multi-process config.

    Processes meet before they leave. With gloo some threads outlive the group for a moment and would abort a process
    that ends at once ("terminate called without an active exception"), so wait for them.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    gloo = dist.get_backend() == "gloo"
    dist.barrier()
    dist.destroy_process_group()
    if gloo:
        time.sleep(1)


def unwrap(value: Any) -> Any:
    """The module inside a DistributedDataParallel or DataParallel wrapper, anything else as it is."""
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return value.module if isinstance(value, parallel) else value
