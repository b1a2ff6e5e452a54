"""One bag of a padded batch without its padding, and its output back among the padding."""

from __future__ import annotations

from torch import Tensor


def real_rows(rows: Tensor, mask: Tensor) -> Tensor:
    """The rows ``[n, d]`` under True ``[n]``; without a copy where these come first, as collation puts them."""
    count = int(mask.sum())
    return rows[:count] if bool(mask[:count].all()) else rows[mask]


def spread(output: dict[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """The output of the real instances ``[.., m]`` at their places among all, ``[.., n]``."""
    padded: dict[str, Tensor] = {}
    for key, value in output.items():
        if key in ("attention_logits", "attention", "instance_logits", "instance_scores"):
            fill = -float("inf") if key.endswith("_logits") else 0.0
            wide = value.new_full([1, value.shape[1], mask.shape[0]], fill)
            padded[key] = wide.masked_scatter(mask, value)
        else:
            padded[key] = value
    return padded
