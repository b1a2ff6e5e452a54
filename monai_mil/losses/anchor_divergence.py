"""ASMIL's stabilising term: divergence of a network's attention from that of its moving average, the anchor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks import exact_dtype

Target = Literal["nsf", "softmax", "entmax"]


class AnchorDivergence(nn.Module):
    """``KL(a || alpha)`` of an anchor's weights ``a`` and the network's attention ``alpha`` (ASMIL Eq. 7).

    ``alpha = softmax(s)`` of the network's scores and ``a = g(s' / temperature + offset)`` of the anchor's, without
    gradient; sum over the instances, mean over heads and bags. Its gradient with respect to a score is
    ``(alpha - a) / heads`` of one bag. Works with every network that :class:`monai_mil.training.Anchor` takes; its
    weight (the paper's beta) is :class:`MILLoss`'s.

    Args:
        target: ``g``. ``"nsf"`` is the normalised sigmoid, the paper's "+Anchor+NSF"; ``"softmax"`` its "+Anchor";
            ``"entmax"`` its comparison, ``entmax_alpha``-entmax of the package of that name.
        temperature: divides the anchor's scores; 1 in the paper, often 0.5 in the released program.
        entmax_alpha: 1.5 as in the paper; 2 is sparsemax, near 1 it is a softmax.
        reduction: ``"tiles"`` sums over a bag's instances as the paper does; ``"mean_all"`` averages over them as the
            released program does, which makes the term vanish on long bags.
        offset: added to the anchor's scores behind the temperature; 0 in the paper. A softmax does not feel it; the
            normalised sigmoid tends to a softmax far below 0 and to equal shares far above.

    Raises:
        ValueError: an argument is none of these, ``temperature`` is not above 0, or ``entmax_alpha`` not above 1.
        ImportError: the package entmax is needed and not installed.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import AnchorDivergence
        >>> loss = AnchorDivergence(target="softmax")
        >>> scores = torch.tensor([[[2.0, 0.0, 0.0]]])
        >>> same = {"attention_logits": scores, "anchor_logits": scores, "anchor_weight": torch.ones(1)}
        >>> loss(same, torch.tensor([1])).item()
        0.0
    """

    def __init__(
        self,
        target: Target = "nsf",
        temperature: float = 1.0,
        reduction: Literal["tiles", "mean_all"] = "tiles",
        entmax_alpha: float = 1.5,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        if target not in get_args(Target):
            raise ValueError(f"unknown target '{target}'; choose from {', '.join(get_args(Target))}")
        if reduction not in ("tiles", "mean_all"):
            raise ValueError(f"reduction must be 'tiles' or 'mean_all', not '{reduction}'")
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if entmax_alpha <= 1:
            raise ValueError(f"entmax_alpha must be above 1, got {entmax_alpha}; target 'softmax' is that of 1")
        if target == "entmax":
            _entmax(entmax_alpha)
        self.entmax_alpha = entmax_alpha
        self.target = target
        self.temperature = temperature
        self.offset = offset
        self.reduction = reduction

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar, float32 or better, at least 0.

        Args:
            output: has ``attention_logits`` and ``anchor_logits`` ``[b, h, n]``; ``mask`` ``[b, n]`` if padded;
                ``anchor_weight`` ``[b]`` where the anchor warms up.
            label: not read.

        Raises:
            ValueError: the scores of the network or of the anchor lack, or differ in shape.
        """
        scores, anchor = _scores(output)
        mask = output.get("mask")
        real = torch.ones_like(scores[:, 0], dtype=torch.bool) if mask is None else mask.to(scores.device)
        with torch.autocast(scores.device.type, enabled=False):
            divergence = _divergence(scores, self._log_target(anchor, real), real).mean(dim=1)
            if self.reduction == "mean_all":
                divergence = divergence / real.sum(dim=1)
            return (divergence * output.get("anchor_weight", torch.ones_like(divergence))).mean()

    def _log_target(self, anchor: Tensor, real: Tensor) -> Tensor:
        """Logarithm of the anchor's weights, ``[b, h, n]``."""
        anchor = anchor / self.temperature + self.offset
        if self.target == "nsf":
            return log_normalised_sigmoid(anchor, real)
        if self.target == "softmax":
            return anchor.masked_fill(~real[:, None], -torch.inf).log_softmax(dim=2)
        weights = torch.zeros_like(anchor)
        for bag, here, places in zip(anchor, weights, real, strict=True):
            here[:, places] = _entmax(self.entmax_alpha)(bag[:, places], dim=1)
        return weights.log()


def log_normalised_sigmoid(scores: Tensor, mask: Tensor) -> Tensor:
    """Logarithm of ASMIL Eq. 5, ``sigmoid(s_i) / sum_j sigmoid(s_j)`` over the instances of one bag.

    High scores share the attention about equally, low ones get next to none: a softmax of one temperature cannot do
    both (the paper's Theorem 1). Scores far below 0, where the sigmoid itself is 0 in float32, keep their order.

    Args:
        scores: attention scores, ``[b, h, n]``.
        mask: True where an instance is real, ``[b, n]``.

    Returns:
        ``[b, h, n]``; its exponentials sum to 1 over the real instances and are 0 elsewhere.
    """
    return F.logsigmoid(scores).masked_fill(~mask[:, None], -torch.inf).log_softmax(dim=2)


def _divergence(scores: Tensor, log_target: Tensor, real: Tensor) -> Tensor:
    """``sum_n a_n (log a_n - log alpha_n)``, ``[b, h]``."""
    hole = ~real[:, None]
    log_attention = scores.masked_fill(hole, -torch.inf).log_softmax(dim=2)
    target = log_target.exp()
    own = torch.where(target > 0, target * log_target, 0.0)  # 0 log 0 is 0
    return (own - target * log_attention.masked_fill(hole, 0.0)).sum(dim=2)


def _scores(output: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scores of the network and, without gradient, of the anchor."""
    for key in ("attention_logits", "anchor_logits"):
        if key not in output:
            raise ValueError(
                f"no '{key}' in the network's output; the anchor needs a network with attention and the inferer "
                "monai_mil.training.AnchorInferer in training"
            )
    scores, anchor = output["attention_logits"], output["anchor_logits"].detach()
    if scores.shape != anchor.shape:
        raise ValueError(f"the anchor's scores {list(anchor.shape)} are not the network's {list(scores.shape)}")
    dtype = exact_dtype(scores.dtype)
    return scores.to(dtype), anchor.to(dtype)


def _entmax(alpha: float) -> Callable[..., Tensor]:
    """The exact solution where the package has one, else by bisection."""
    try:
        import entmax
    except ImportError as error:
        raise ImportError("the target 'entmax' needs its package: pip install 'monai-mil[entmax]'") from error
    exact = {1.5: entmax.entmax15, 2.0: entmax.sparsemax}
    return exact.get(alpha, partial(entmax.entmax_bisect, alpha=alpha))
