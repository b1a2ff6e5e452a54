"""The end of a distributed run."""

from __future__ import annotations

import time

import torch.distributed as dist


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
