"""Spectral decoupling: a penalty on large logits, which keep a network from learning the weaker signs of a class."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class SpectralDecoupling(nn.Module):
    """Half the mean square of logits (Pezeshki et al. 2021), over all real tokens of a bag and all known labels.

    The paper of INSIGHT sums over the tokens, its code averages over a chunk and weighs twice; this is the mean over
    the whole bag, once, whose size does not depend on the slide's. Its weight (lambda) is `MILLoss`'s.

    Args:
        key: which logits of the output: INSIGHT's ``detection_logits``, or ``instance_logits`` or ``logits`` of any
            other network.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import SpectralDecoupling
        >>> SpectralDecoupling(key="logits")({"logits": torch.tensor([[2.0, -4.0]])}, torch.tensor([[1.0, 0.0]])).item()
        5.0
    """

    def __init__(self, key: str = "detection_logits") -> None:
        super().__init__()
        self.key = key

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar, float32 or better.

        Args:
            output: has the logits ``[b, c, ...]``, and the ``mask`` ``[b, n]`` or ``token_mask`` ``[b, n, h, w]``
                where not all of it is real.
            label: ``[b, c]``, NaN where a label is unknown: its logits are left alone; class indices ``[b]`` know all.

        Raises:
            ValueError: the network gives no such logits.
        """
        if self.key not in output:
            raise ValueError(f"no '{self.key}' in the network's output; it has {', '.join(sorted(output))}")
        logits = output[self.key]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        tokens = logits.dim() > 3 and "token_mask" in output
        means = _mean_square(logits, output.get("token_mask" if tokens else "mask"))
        known = torch.ones_like(means, dtype=torch.bool)
        if label.is_floating_point() and label.numel() == means.numel():
            known = ~torch.isnan(label.to(means.device).reshape(means.shape))
        return torch.where(known, means, 0.0).sum() / known.sum().clamp(min=1) / 2


def _mean_square(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Of every bag and label, ``[b, c]``, over the real instances and their tokens."""
    if logits.dim() == 2:
        return logits.square()
    if mask is None:
        return logits.square().flatten(2).mean(dim=2)
    real = mask[:, None].to(logits.device)
    real = real.reshape(*real.shape, *[1] * (logits.dim() - real.dim())).expand_as(logits)
    squares = logits.square().masked_fill(~real, 0.0)
    return squares.flatten(2).sum(dim=2) / real.flatten(2).sum(dim=2)
