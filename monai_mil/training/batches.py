"""From a collated batch of bags to a network's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def prepare_bag_batch(
    batchdata: Mapping[str, Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None, tuple[()], dict[str, Tensor]]:
    """The ``prepare_batch`` of MONAI engines for bags, padded or not.

    Args:
        batchdata: has ``image`` ``[b, d, n]`` and may have ``label`` and ``mask`` ``[b, n]``.
        device: where the tensors go.
        non_blocking: copy without waiting, from pinned memory.
        kwargs: further arguments of ``Tensor.to``.

    Returns:
        Image, label (None where there is none), no positional and, if the batch is padded, the keyword ``mask``.
    """

    def move(value: Any) -> Tensor:
        return torch.as_tensor(value).to(device=device, non_blocking=non_blocking, **kwargs)

    label = batchdata.get("label")
    mask = batchdata.get("mask")
    keywords = {} if mask is None else {"mask": move(mask).bool()}
    return move(batchdata["image"]), None if label is None else move(label), (), keywords
