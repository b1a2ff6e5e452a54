"""HDMIL's second stage: what the pictures' network keeps is drawn to what its teacher keeps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_mil.networks import exact_dtype


class ScreeningDistillation(nn.Module):
    """``mean |k - t| + mean (r(k) - r(t))^2`` of the instances that an ``LIPN`` and its teacher keep.

    ``k_ci = 1`` where ``sigmoid(g_ci) > 1/2``, with a straight-through gradient, ``t_ci`` likewise of the teacher's
    scores, and ``r`` the share of the instances that any class keeps, of every bag. Both terms have the weight 1 of the
    released program, which reads its shares from the first two classes. It has no term of the bag's logits.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import ScreeningDistillation
        >>> output = {"screen_logits": torch.tensor([[[2.0, -2.0]]]), "teacher_kept": torch.tensor([[[1.0, 1.0]]])}
        >>> ScreeningDistillation()(output, torch.tensor([0])).item()  # one of two differs; the shares are 0.5 and 1
        0.75
    """

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar, at least 0.

        Args:
            output: of an ``LIPN`` in training.
            label: not read.

        Raises:
            ValueError: the network has no teacher.
        """
        if "teacher_kept" not in output:
            raise ValueError(f"no teacher screens in training; the output has {', '.join(sorted(output))}")
        logits = output["screen_logits"]
        logits = logits.to(exact_dtype(logits.dtype))
        real = logits > -float("inf")
        soft = torch.sigmoid(logits.masked_fill(~real, 0.0)) * real
        kept = ((soft > 0.5).to(soft.dtype) - soft).detach() + soft
        taught = output["teacher_kept"].to(soft.dtype) * real
        apart = (kept - taught).abs().sum() / real.sum()
        shares = [_share(mask, real[:, 0]) for mask in (kept, taught)]
        return apart + (shares[0] - shares[1]).square().mean()


def _share(kept: Tensor, real: Tensor) -> Tensor:
    """Of every bag, ``[b]``, with a straight-through gradient."""
    number = kept.sum(dim=1)
    union = ((number > 0.5).to(number.dtype) - number).detach() + number
    return union.sum(dim=1) / real.sum(dim=1)
