"""Batches of bags of different sizes: padded, with a mask that says which instances are real."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import list_data_collate
from torch import Tensor

from monai_mil.bags.instances import per_instance
from monai_mil.networks import KEYS


def collate_bags(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make one batch of several bags; MONAI's engines take it apart again with ``decollate_batch``.

    Args:
        items: dictionaries with ``image`` ``[d, n, ...]``, where ``n`` differs from bag to bag.

    Returns:
        ``image`` ``[b, d, n_max, ...]`` padded with zeros, ``mask`` ``[b, n_max]``, True where an instance is real,
        what else is known of every instance padded as ``networks.KEYS`` says where all bags have it (``coords`` with
        0, ``instance_labels`` with -1), and every other key collated as MONAI does: labels stacked, strings in a list.
        ``token_mask`` ``[b, n_max, h, w]`` where a bag has one: True where a token is real.

    Raises:
        ValueError: some bags hold features, others their codes; their widths or grids differ; or bags of different
            sizes have a row for every instance under a key that ``networks.KEYS`` does not list.

    Examples:
        >>> import torch
        >>> from monai_mil.bags import collate_bags
        >>> batch = collate_bags([{"image": torch.ones(8, 3), "label": 0}, {"image": torch.ones(8, 5), "label": 1}])
        >>> list(batch["image"].shape), batch["mask"].sum(dim=1), batch["label"]
        ([2, 8, 5], tensor([3, 5]), tensor([0, 1]))
    """
    images = [item["image"] for item in items]
    sizes = [image.shape[1] for image in images]
    batch: dict[str, Any] = {"image": _pad_images(images, max(sizes))}
    batch["mask"] = torch.arange(max(sizes))[None] < torch.tensor(sizes)[:, None]
    found = _per_instance(items, sizes)
    for key, axis in found.items():
        if all(key in item for item in items):
            rows = [torch.as_tensor(item[key]).movedim(axis, 0) for item in items]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=KEYS[key].padding)
            batch[key] = padded.movedim(1, 1 + axis)
    if any("token_mask" in item for item in items):
        whole = torch.ones(1, *images[0].shape[2:], dtype=torch.bool)
        masks = [item.get("token_mask", whole.expand(size, -1, -1)) for item, size in zip(items, sizes, strict=True)]
        batch["token_mask"] = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)
    if isinstance(items[0].get("label"), Sequence):
        batch["label"] = torch.tensor([item["label"] for item in items], dtype=torch.float32)
    rest = [{key: value for key, value in item.items() if key not in {*batch, *found}} for item in items]
    return batch | (list_data_collate(rest) if rest[0] else {})


def _per_instance(items: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> dict[str, int]:
    """What some of the bags know of every instance; bags of one size need no padding, whatever they know."""
    padded = len(set(sizes)) > 1
    own = {"image", "mask", "token_mask"}
    return {
        key: axis
        for item, size in zip(items, sizes, strict=True)
        for key, axis in per_instance(item, size if padded else -1, but=own).items()
    }


def _pad_images(images: Sequence[Tensor], largest: int) -> Tensor:
    """Channels stay innermost in memory, as bags are stored and as networks want them."""
    if len({image.dtype for image in images}) > 1:
        raise ValueError(
            "the bags of this batch hold features of different types (float16 and uint8?): embed with one storage, "
            "or take one bag a batch"
        )
    shapes = {(image.shape[0], *image.shape[2:]) for image in images}
    if len(shapes) > 1:
        listed = " and ".join(str(list(shape)) for shape in sorted(shapes))
        raise ValueError(f"the instances of this batch have shapes {listed}: embed all bags with one encoder")
    plain = [image.as_tensor() if isinstance(image, MetaTensor) else image for image in images]
    if len(plain) == 1:
        padded = plain[0][None]
    else:
        channels, _, *grid = plain[0].shape
        memory = plain[0].new_zeros(len(plain), largest, *grid, channels)
        padded = memory.movedim(-1, 1)
        for target, image in zip(padded, plain, strict=True):
            target[:, : image.shape[1]] = image
    if not all(isinstance(image, MetaTensor) for image in images):
        return padded
    batch = MetaTensor(padded)
    batch.meta = list_data_collate([image.meta for image in images])  # type: ignore[attr-defined]
    batch.applied_operations = [image.applied_operations for image in images]  # type: ignore[attr-defined]
    batch.is_batch = True
    return batch
