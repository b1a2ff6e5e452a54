"""The real instances of one bag of a padded batch, and what a network says of them back among the padding."""

from __future__ import annotations

import torch
from torch import Tensor


def real_rows(rows: Tensor, mask: Tensor) -> Tensor:
    """The rows ``[n, d]`` under True ``[n]``; without a copy where these come first, as collation puts them."""
    count = int(mask.sum())
    return rows[:count] if bool(mask[:count].all()) else rows[mask]


def front_lengths(mask: Tensor) -> list[int]:
    """Number of real instances of every bag of ``mask`` ``[b, n]`` where they come first, as collation puts them.

    -1 where they do not. One wait for the device in all.
    """
    counts = mask.sum(dim=1)
    in_front = mask == (torch.arange(mask.shape[1], device=mask.device) < counts[:, None])
    return torch.where(in_front.all(dim=1), counts, -1).tolist()


def among_padding(values: Tensor, mask: Tensor, fill: float = -float("inf")) -> Tensor:
    """Values ``[..., m]`` of the real instances of one bag at their places among all: ``[..., n]``.

    Args:
        values: one column a real instance, in the bag's order.
        mask: True where an instance is real, ``[n]``.
        fill: what stands on padding; attention before softmax takes ``-inf``.
    """
    return values.new_full(values.shape[:-1] + mask.shape, fill).masked_scatter(mask, values)


def restore_padding(output: dict[str, Tensor], mask: Tensor, keys: list[tuple[str, int, float]]) -> dict[str, Tensor]:
    """The output for the ``m`` real instances of one bag as the output for all its ``n``.

    Args:
        output: of a batch of this one bag.
        mask: True where an instance is real, ``[n]``.
        keys: ``self.listed_keys`` of a network.

    Raises:
        ValueError: a key that is not listed has a value for every instance.
    """
    padded: dict[str, Tensor] = {}
    real = int(mask.sum())
    for key, value in output.items():
        padded[key] = value
        listed = False
        for name, axis, fill in keys:
            if name == key:
                listed = True
                if axis > 0:
                    padded[key] = among_padding(value.movedim(axis, -1), mask, fill).movedim(-1, axis)
        if not listed and real in value.shape[1:]:
            raise ValueError(
                f"the output's '{key}' {list(value.shape)} seems to have a value for each of {real} instances, and "
                "nobody knows what belongs on padding: list the key in KEYS of monai_mil.networks.contract"
            )
    return padded
