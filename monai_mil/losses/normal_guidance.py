"""Normal Guidance: attention over slices is drawn towards the normal distribution of its own mean and variance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Divergence = Literal["forward_kl", "reverse_kl", "squared_error"]


class NormalGuidance(nn.Module):
    """Penalty on attention that is not bell-shaped along the scan (Harvey, Loevlie and Hughes, arXiv 2605.27306).

    ``mean over bags of mean over heads of D(r, a)``, where ``a`` is a head's attention over the instances of a bag and
    ``r`` the discrete normal distribution with the mean and variance of ``a`` itself, without gradient. The mean is
    free: only the shape of the attention is guided, not its place. The weight (the paper's lambda) is
    :class:`MILLoss`'s. Works with every network whose output holds an attention.

    Args:
        divergence: ``"forward_kl"`` is ``KL(r || a)``, whose gradient with respect to the attention scores is exactly
            ``a - r``; ``"reverse_kl"`` is ``KL(a || r)``; ``"squared_error"`` is ``sum (r - a)^2``, which vanishes on
            long bags.
        eps: floor of ``r`` and ``a`` if ``renormalize`` is off, as in the authors' code; not used otherwise.
        min_std: least standard deviation of ``r``, in instances or in the unit of the positions. The paper's 1e-3
            leaves attention on one single instance unpunished; a larger one draws it apart.
        renormalize: let ``a`` sum to 1 over the instances before anything else. Off, the authors' code is reproduced:
            where a class token takes a part of the attention (``attention_share``), the rest is compared as it is,
            and reverse KL then rewards giving everything to the token.
        per_head: guide every head by itself; otherwise the mean of the heads' attention.
        positions: place instances at ``output["positions"]`` (mm ``[b, n]``, or ``[b, n, 2]`` of tiles, which are
            guided to a bivariate normal) instead of 1..n. ``r`` is the density at the positions, not weighted by their
            distances: attention belongs to instances, however densely they lie.
        apply_to: ``"positive"`` guides only bags with a label above 0; the mean stays that over all bags of the batch,
            so that the size of a batch does not change the penalty's weight.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import NormalGuidance
        >>> places = torch.arange(40.0)
        >>> bell = (-0.5 * ((places - 20) / 4) ** 2).softmax(dim=0)
        >>> comb = torch.where(places % 10 == 0, 1.0, 1e-3)
        >>> guidance = NormalGuidance()
        >>> round(guidance({"attention": bell[None, None]}, torch.tensor([1])).item(), 3)
        0.0
        >>> round(guidance({"attention": (comb / comb.sum())[None, None]}, torch.tensor([1])).item(), 3)
        4.016
    """

    def __init__(
        self,
        divergence: Divergence = "forward_kl",
        eps: float = 1e-6,
        min_std: float = 1e-3,
        renormalize: bool = True,
        per_head: bool = True,
        positions: bool = False,
        apply_to: Literal["all", "positive"] = "all",
    ) -> None:
        super().__init__()
        if divergence not in get_args(Divergence):
            raise ValueError(f"unknown divergence '{divergence}'; choose from {', '.join(get_args(Divergence))}")
        if apply_to not in ("all", "positive"):
            raise ValueError(f"apply_to must be 'all' or 'positive', not '{apply_to}'")
        if eps <= 0 or min_std <= 0:
            raise ValueError(f"eps and min_std must be above 0, got {eps} and {min_std}")
        self.divergence: Divergence = divergence
        self.eps = eps
        self.min_std = min_std
        self.renormalize = renormalize
        self.per_head = per_head
        self.positions = positions
        self.apply_to = apply_to

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar penalty of a network's output, float32 or better.

        Args:
            output: has ``attention_logits`` or ``attention`` ``[b, h, n]``; ``mask`` ``[b, n]`` if padded.
            label: of the bags, ``[b]``, ``[b, 1]`` or ``[b, c]``; read for ``apply_to="positive"`` only.

        Raises:
            ValueError: there is no attention, a bag is empty or its attention is not a number, or positions lack.
        """
        penalty = normal_guidance(
            log_attention(output, self.renormalize, self.per_head),
            output.get("mask"),
            self._positions(output),
            divergence=self.divergence,
            min_std=self.min_std,
            eps=None if self.renormalize else self.eps,
        ).mean(dim=1)
        if self.apply_to == "positive":
            penalty = penalty * (label.to(penalty.device).reshape(len(penalty), -1) > 0).any(dim=1)
        return penalty.mean()

    def _positions(self, output: Mapping[str, Tensor]) -> Tensor | None:
        if self.positions and "positions" not in output:
            raise ValueError(
                "Normal Guidance over positions needs them in the output; use prepare_positioned_bag_batch and "
                "FullOutputInferer of monai_mil.training, and bags that hold positions"
            )
        return output["positions"] if self.positions else None


def log_attention(output: Mapping[str, Tensor], renormalize: bool = True, per_head: bool = True) -> Tensor:
    """Logarithm of the attention that is guided, ``[b, h, n]``, or ``[b, 1, n]`` of the heads' mean.

    Args:
        output: of a network.
        renormalize: of the attention over the instances; otherwise of ``attention_share``, the part that a class token
            left, where a network has one.
        per_head: keep the heads apart; otherwise average what they give, each renormalised if asked.

    What lies on padding is without meaning.

    Raises:
        ValueError: the output holds no attention, or none over any instance.
    """
    share = "attention_share" in output and not renormalize
    name = "attention_logits" if "attention_logits" in output else "attention_share" if share else "attention"
    if name not in output:
        raise ValueError(
            f"Normal Guidance needs a network with attention, the output has {', '.join(sorted(output))}; "
            "give the term the weight 0 (guidance_lambda of the bundle) or choose another network"
        )
    scores = _exact(output[name])
    if scores.dim() != 3 or 0 in scores.shape:
        raise ValueError(f"attention must be [b, heads, instances] with an instance, got {list(scores.shape)}")
    if name != "attention_logits":
        scores = scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
    mask = output.get("mask")
    hole = torch.zeros_like(scores[:, :1], dtype=torch.bool) if mask is None else ~mask[:, None]
    if not share:
        scores = scores.masked_fill(hole, -torch.inf).log_softmax(dim=2)
    if per_head:
        return scores
    return scores.masked_fill(hole, 0.0).logsumexp(dim=1, keepdim=True) - math.log(scores.shape[1])


def normal_guidance(
    log_attention: Tensor,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    *,
    divergence: Divergence = "forward_kl",
    min_std: float = 1e-3,
    eps: float | None = None,
) -> Tensor:
    """Divergence of every head's attention from the normal distribution of its own mean and variance.

    Computed in logarithms, so that attention keeps its gradient however small it is, and in float32 or better, under
    autocast too.

    Args:
        log_attention: ``[b, h, n]``.
        mask: True where an instance is real, ``[b, n]``; None if all are. What lies under False never matters.
        positions: of the instances, ``[b, n]`` or ``[b, n, k]``; None takes 1..n.
        divergence: see :class:`NormalGuidance`.
        min_std: see there.
        eps: floor of both distributions, as the authors' code has it: attention below has no gradient. None for none.

    Returns:
        Penalties ``[b, h]``, float32 or float64.

    Raises:
        ValueError: a bag has no instance, or its attention or a position is not a finite number; names it.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import normal_guidance
        >>> two_heads = torch.zeros(1, 2, 30).log_softmax(dim=2)  # uniform attention is no bell
        >>> list(normal_guidance(two_heads).shape), bool((normal_guidance(two_heads) > 0).all())
        ([1, 2], True)
    """
    real = torch.ones_like(log_attention[:, 0], dtype=torch.bool) if mask is None else mask.bool()
    places = _places(log_attention, positions)
    _check(log_attention, places, real)
    with torch.autocast(log_attention.device.type, enabled=False):
        hole = ~real[:, None]
        log_a = _exact(log_attention).masked_fill(hole, 0.0)
        log_r = _log_reference(log_a.detach(), places.to(log_a).masked_fill(~real[..., None], 0.0), real, min_std)
        if eps is None:
            terms = _terms(log_r.exp(), log_r, log_a.exp(), log_a, divergence)
        else:
            r, a = log_r.exp().clamp(min=eps), log_a.exp().clamp(min=eps)
            terms = _terms(r, r.log(), a, a.log(), divergence)
        return terms.masked_fill(hole, 0.0).sum(dim=2)


def _terms(r: Tensor, log_r: Tensor, a: Tensor, log_a: Tensor, divergence: Divergence) -> Tensor:
    if divergence == "forward_kl":
        return r * (log_r - log_a)
    if divergence == "reverse_kl":
        return a * (log_a - log_r)
    return (r - a).square()


def _log_reference(log_a: Tensor, places: Tensor, real: Tensor, min_std: float) -> Tensor:
    """Logarithm of the discrete normal with the moments of the attention, ``[b, h, n]``, 0 on padding.

    The variance is that of the centred positions (two passes): the one-pass form loses all digits where a narrow peak
    lies far from the first slice. Of positions in the plane it is the covariance, its axes floored one by one.
    """
    hole = ~real[:, None]
    weights = log_a.masked_fill(hole, -torch.inf).softmax(dim=2)
    mean = weights @ places
    mean = mean + ((places[:, None] - mean[:, :, None]) * weights[..., None]).sum(dim=2)
    deviation = places[:, None] - mean[:, :, None]
    covariance = (weights[..., None] * deviation).mT @ deviation
    variance, axes = torch.linalg.eigh(covariance)
    rounding = 8 * torch.finfo(variance.dtype).eps * variance[..., -1:]
    variance = torch.maximum(variance, rounding).clamp(min=min_std**2)
    distance = (deviation @ axes).square() / variance[:, :, None]
    return (-distance.sum(dim=3) / 2).masked_fill(hole, -torch.inf).log_softmax(dim=2).masked_fill(hole, 0.0)


def _places(log_attention: Tensor, positions: Tensor | None) -> Tensor:
    """Where the instances lie, ``[b, n, k]``."""
    bags, _, count = log_attention.shape
    if positions is None:
        return torch.arange(1, count + 1, device=log_attention.device).expand(bags, -1)[..., None]
    if positions.shape[:2] != (bags, count) or positions.dim() > 3:
        raise ValueError(f"positions {list(positions.shape)} do not fit attention {list(log_attention.shape)}")
    return positions if positions.dim() == 3 else positions[..., None]


def _check(log_attention: Tensor, places: Tensor, real: Tensor) -> None:
    for bag in torch.nonzero(~real.any(dim=1)).flatten().tolist():
        raise ValueError(f"bag {bag} of the batch has no instance to guide the attention of; leave it out")
    for name, broken, cause in (
        ("attention", ~torch.isfinite(log_attention).all(dim=1), "training has diverged; lower the learning rate"),
        ("positions", ~torch.isfinite(places).all(dim=2), "make the bag again"),
    ):
        for bag in torch.nonzero((broken & real).any(dim=1)).flatten().tolist():
            raise ValueError(f"the {name} of bag {bag} of the batch: not finite numbers; {cause}")


def _exact(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
