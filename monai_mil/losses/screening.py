"""HDMIL's terms: an answer from few instances is drawn to the answer from all."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks import exact_dtype


class ScreeningLoss(nn.Module):
    """``0.5 KL(p || p') + 0.5 mean (z - z')^2 + 2 mean (r - ratio)^2`` of HDMIL's two answers.

    ``p`` and ``z`` are the softmax of the logits and the bag of all instances, ``p'`` and ``z'`` those of the kept
    ones, ``r`` the share that is kept. Weights are those of the released program, and gradients flow into both
    answers, as there.

    Args:
        ratio: share of the instances to be kept, in (0, 1].

    Raises:
        ValueError: ``ratio`` is out of range.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import ScreeningLoss
        >>> same = {"logits": torch.zeros(1, 2), "bag": torch.zeros(1, 4)}
        >>> output = same | {f"screened_{key}": value for key, value in same.items()}
        >>> round(ScreeningLoss(0.1)(output | {"screened_share": torch.tensor([0.6])}, torch.tensor([1])).item(), 4)
        0.5
    """

    def __init__(self, ratio: float = 0.1) -> None:
        super().__init__()
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be above 0 and at most 1, got {ratio}")
        self.ratio = ratio

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar, at least 0.

        Args:
            output: of an ``HDMIL`` in training.
            label: not read.

        Raises:
            ValueError: the network does not screen.
        """
        if "screened_logits" not in output:
            raise ValueError(f"the network does not screen in training; its output has {', '.join(sorted(output))}")
        dtype = exact_dtype(output["logits"].dtype)
        whole, few = (output[key].to(dtype).log_softmax(dim=1) for key in ("logits", "screened_logits"))
        divergence = F.kl_div(few, whole, reduction="batchmean", log_target=True)
        apart = F.mse_loss(output["screened_bag"].to(dtype), output["bag"].to(dtype))
        share = (output["screened_share"].to(dtype) - self.ratio).square().mean()
        return 0.5 * divergence + 0.5 * apart + 2 * share
