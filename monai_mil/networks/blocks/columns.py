"""One growing tensor for the results of a long bag's chunks, so that memory is not fragmented."""

from __future__ import annotations

import torch
from torch import Tensor


def write_columns(store: Tensor, start: int, columns: Tensor) -> Tensor:
    """Write a chunk into one growing tensor.

    A small tensor kept for every chunk would pin the large ones freed beside it: a million instances would hold
    gigabytes of empty heap.

    Args:
        store: ``[..., capacity]``.
        start: columns already in it.
        columns: the next ones, ``[..., m]``.

    Returns:
        ``store``, or a copy at least twice as wide where it was too small.
    """
    end = start + columns.shape[-1]
    while end > store.shape[-1]:
        store = torch.cat([store, torch.empty_like(store)], dim=-1)
    store[..., start:end] = columns
    return store
