"""From a collated batch of bags to a network's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor | None, tuple[()], dict[str, Any]]


def prepare_bag_batch(
    batchdata: Mapping[str, Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> Batch:
    """The ``prepare_batch`` of MONAI engines for bags, padded or not.

    Args:
        batchdata: has ``image`` ``[b, d, n]`` and may have ``label`` and ``mask`` ``[b, n]``.
        device: where the tensors go.
        non_blocking: copy without waiting, from pinned memory.
        kwargs: further arguments of ``Tensor.to``.

    Returns:
        Image, label (None where there is none), no positional and, if the batch is padded, the keyword ``mask``.

    Examples:
        >>> import torch
        >>> from monai_mil.training import prepare_bag_batch
        >>> mask = torch.ones(1, 5, dtype=torch.bool)
        >>> batch = {"image": torch.zeros(1, 8, 5), "mask": mask, "label": torch.tensor([1])}
        >>> image, label, args, kwargs = prepare_bag_batch(batch)
        >>> label, args, list(kwargs)
        (tensor([1]), (), ['mask'])
    """
    move = _mover(device, non_blocking, kwargs)
    label = batchdata.get("label")
    mask = batchdata.get("mask")
    keywords = {} if mask is None else {"mask": move(mask).bool()}
    return move(batchdata["image"]), None if label is None else move(label), (), keywords


def prepare_token_batch(
    batchdata: Mapping[str, Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> Batch:
    """:func:`prepare_bag_batch` for networks that fetch tokens themselves, chunk by chunk (``INSIGHT``).

    The image stays where it is, in memory or in a mapped file, in its own type; label and keywords go to ``device``.
    Keywords are ``mask``, of tokens ``[b, n, h, w]`` where the batch has a ``token_mask``, and ``scale`` and ``offset``
    where the image holds codes. ``DistributedDataParallel`` must be made without ``device_ids``, or it moves the image.
    """
    move = _mover(device, non_blocking, kwargs)
    label = batchdata.get("label")
    mask = "token_mask" if "token_mask" in batchdata else "mask"
    keys = {"mask": mask, "scale": "feature_scale", "offset": "feature_offset"}
    keywords = {name: move(batchdata[key]) for name, key in keys.items() if key in batchdata}
    return torch.as_tensor(batchdata["image"]), None if label is None else move(label), (), keywords


def prepare_positioned_bag_batch(
    batchdata: Mapping[str, Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> Batch:
    """:func:`prepare_bag_batch` with the keyword ``positions``, for losses that ask where the instances lie.

    Positions are ``positions_mm`` ``[b, n]`` of a scan's slices, else the ``coords`` ``[b, n, 2]`` of a slide's tiles
    as floats; a batch without either brings none. :class:`FullOutputInferer` puts them into the network's output.
    """
    image, label, positional, keywords = prepare_bag_batch(batchdata, device, non_blocking, **kwargs)
    positions = batchdata.get("positions_mm", batchdata.get("coords"))
    if positions is not None:
        moved = _mover(device, non_blocking, {})(positions)
        keywords["positions"] = moved if moved.is_floating_point() else moved.float()
    return image, label, positional, keywords


def prepare_instance_batch(
    batchdata: Mapping[str, Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> Batch:
    """:func:`prepare_bag_batch` with ``instance_labels`` ``[b, n]`` as the label that ``InstanceBCE`` takes.

    Raises:
        ValueError: the batch has no instance labels.
    """
    labelled = _labelled_by("instance_labels", batchdata, "training on single instances needs; load them too")
    return prepare_bag_batch(labelled, device, non_blocking, **kwargs)


def prepare_token_label_batch(
    batchdata: Mapping[str, Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> Batch:
    """:func:`prepare_bag_batch` with ``token_labels`` ``[b, n, c, h, w]`` as the label that ``TokenDice`` takes.

    Raises:
        ValueError: the batch has no token labels.
    """
    labelled = _labelled_by("token_labels", batchdata, "training on tokens needs; set them by ScanTruthd")
    return prepare_bag_batch(labelled, device, non_blocking, **kwargs)


def _labelled_by(key: str, batchdata: Mapping[str, Any], needed: str) -> dict[str, Any]:
    """The batch with another entry as its label; ``needed`` says by what, and what to do where there is none."""
    if key not in batchdata:
        raise ValueError(f"the bags hold no '{key}', which {needed}")
    return {**batchdata, "label": batchdata[key]}


def prepare_streamed_batch(
    batchdata: Mapping[str, Any],
    device: str | torch.device | None = None,
    non_blocking: bool = False,
    **kwargs: Any,
) -> Batch:
    """:func:`prepare_bag_batch` for slides of :class:`monai_mil.embedding.StreamSlided`.

    The one keyword, ``streamed``, is the network's output on ``device``, for :class:`StreamedInferer`.
    """
    image, label, positional, _ = prepare_bag_batch(batchdata, device, non_blocking, **kwargs)
    move = _mover(device, non_blocking, {})
    output = {name: move(value) for name, value in batchdata["streamed"].items()}
    return image, label, positional, {"streamed": output}


def _mover(device: str | torch.device | None, non_blocking: bool, kwargs: Mapping[str, Any]) -> Callable[[Any], Tensor]:
    """What brings numbers of any kind to the device as a tensor."""
    return lambda value: torch.as_tensor(value).to(device=device, non_blocking=non_blocking, **kwargs)
