"""CLAM's instance branch: two-way classifiers of the most and the least attended instances of a bag."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.contract import exact_matmul


class InstanceBranch(nn.Module):
    """For every class a linear two-way classifier, "not this class" against "this class".

    Cross-entropy and smooth SVM of two scores depend on their difference alone, so that is what it gives: the
    evidence ``(w_yes - w_no) h + b_yes - b_no``.

    Args:
        channels: ``i``, width of an instance's hidden row.
        num_classes: ``c``.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifiers = nn.Linear(channels, 2 * num_classes)  # rows: no, yes of the first class, no, yes, ...

    def forward(self, hidden: Tensor) -> Tensor:
        """Class evidence of selected instances.

        Args:
            hidden: ``[b, h, m, i]``; ``h`` is 1, the same instances for every class, or ``c``, each class its own.

        Returns:
            ``[b, c, m]``, float32 or better.
        """
        no_weight, yes_weight = self.classifiers.weight[0::2], self.classifiers.weight[1::2]
        no_bias, yes_bias = self.classifiers.bias[0::2], self.classifiers.bias[1::2]
        if hidden.shape[1] == 1:
            evidence = exact_matmul(hidden[:, 0], (yes_weight - no_weight).T).transpose(1, 2)
        else:
            evidence = exact_matmul(hidden, (yes_weight - no_weight)[None, :, :, None]).squeeze(3)
        return evidence + (yes_bias - no_bias)[:, None]


def most_and_least_attended(scores: Tensor, mask: Tensor | None, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The most and the least attended instances, never the same instance in both.

    A bag of fewer than ``2 count`` instances gives half of them to each side; a single instance is the most attended.

    Args:
        scores: attention before softmax, ``[b, h, n]``.
        mask: True where an instance is real, ``[b, n]``, or None.
        count: ``k``.

    Returns:
        Indices of the most attended instances, highest first, ``[b, h, k]``; which of them count, ``[b, 1, k]``; and
        the same two of the least attended, lowest first. An index that does not count is in range.
    """
    scores = scores.detach()
    hole = torch.zeros_like(scores[:, :1], dtype=torch.bool) if mask is None else ~mask[:, None]
    real = (~hole).sum(dim=2, keepdim=True)
    places = torch.arange(count, device=scores.device)
    most = (real // 2).clamp(min=1, max=count)
    sides = []
    for signed, taken in ((scores, most), (-scores, torch.minimum(most, real - 1))):
        signed = F.pad(signed.masked_fill(hole, -float("inf")), [0, count], value=-float("inf"))
        sides.append(signed.topk(count, dim=2).indices.clamp(max=scores.shape[2] - 1))
        sides.append(places < taken)
    return sides[0], sides[1], sides[2], sides[3]
