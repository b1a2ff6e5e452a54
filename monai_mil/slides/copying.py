"""Copying batches to a device beside the work that goes on there."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable

import numpy as np
import torch
from torch import Tensor

from monai_mil.slides.tiff import pixel_buffer


def host_buffer(shape: tuple[int, ...], device: torch.device) -> np.ndarray:
    """Uninitialised uint8 memory of the host, pinned where it is copied to a device."""
    if device.type == "cpu":
        return pixel_buffer(shape)
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def copied(batches: Iterable[np.ndarray], device: torch.device, held: int) -> Generator[Tensor, None, None]:
    """Copy batches on a stream of their own; only the device waits, for the one copy that it needs.

    On the CPU streams and events do nothing and the tensors are the arrays themselves.

    Args:
        batches: arrays in memory that :func:`host_buffer` made.
        device: where they are wanted.
        held: batches kept while their copies are under way; their memory is used again afterwards.

    Yields:
        The batches on the device, to be used on the stream that is current there.
    """
    lane = torch.get_device_module(device)
    copying = lane.Stream() if device.type == "cpu" else lane.Stream(device)
    under_way: deque[tuple[torch.Event, np.ndarray]] = deque()
    held = 0 if device.type == "cpu" else held
    for batch in batches:
        with lane.stream(copying):
            pixels = torch.from_numpy(batch).to(device, non_blocking=True)
            event = lane.Event()
            event.record(copying)
        under_way.append((event, batch))
        del batch
        if len(under_way) > held:
            under_way.popleft()[0].synchronize()
        consumer = lane.current_stream() if device.type == "cpu" else lane.current_stream(device)
        consumer.wait_event(event)
        if pixels.is_cuda:
            pixels.record_stream(consumer)
        yield pixels
        del pixels
