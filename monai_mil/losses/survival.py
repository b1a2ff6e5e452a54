"""Survival in discrete time: when an event happens, learned from patients some of whom are followed too short."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn


def time_bins(follow_up: ArrayLike, count: int | None = None) -> list[float]:
    """Edges of time bins, fitted on the training split: equal steps up to the last event.

    Args:
        follow_up: time and event (1, or 0 where censored) of every patient, ``[n, 2]``; see
            :func:`monai_mil.cohorts.follow_up`.
        count: number of bins; default ``ceil(sqrt(number of events))``.

    Returns:
        ``count + 1`` edges in the unit of the times; the first is 0, the last just behind the longest follow-up.

    Raises:
        ValueError: there are fewer than two events at different times, or fewer than two bins.

    Examples:
        >>> from monai_mil.losses import time_bins
        >>> follow_up = [(5, 1), (10, 1), (15, 0), (20, 1), (30, 1), (40, 0)]
        >>> edges = time_bins(follow_up)
        >>> [round(edge, 1) for edge in edges]
        [0.0, 15.0, 40.0]
    """
    rows = np.asarray(follow_up, dtype=float).reshape(-1, 2)
    time, event = rows[~np.isnan(rows).any(axis=1)].T
    events = time[event == 1]
    if len(np.unique(events)) < 2:
        raise ValueError(
            f"time bins need events at two times or more, but the {len(rows)} training patients have {len(events)} "
            f"events at {len(np.unique(events))}; see that the cohort's event column holds 1 where the event happened "
            "and that its training split has such patients, or give the bins (--time_edges)"
        )
    count = max(2, math.ceil(math.sqrt(len(events)))) if count is None else count
    if count < 2:
        raise ValueError(f"{count} time bins cannot tell early from late; take at least two")
    edges = np.linspace(0, events.max(), count + 1)
    return [*edges[:-1].tolist(), float(time.max() * (1 + 1e-6))]


class DiscreteSurvival(nn.Module):
    """Negative log-likelihood of a patient's follow-up under the network's incidence (Liu et al. 2025).

    ``p = softmax(logits)`` is the probability of the event in each of ``K`` bins. A patient with an event in bin ``t``
    costs ``-log p_t``, one censored in it ``-log sum_{k > t} p_k``. Censored in the last bin a patient tells nothing
    and costs 0, where the reference clamps to a constant.

    Args:
        edges: of the bins, ``K + 1``, from :func:`time_bins`; a bin has its left edge and not its right. Times behind
            the last one are in the last bin.

    Raises:
        ValueError: the edges do not rise, or there are fewer than three.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import DiscreteSurvival
        >>> loss = DiscreteSurvival(edges=[0, 12, 24, 36])  # months
        >>> output = {"logits": torch.zeros(1, 3)}
        >>> round(loss(output, torch.tensor([[6.0, 1.0]])).item(), 4)  # an event in the first of three bins: log 3
        1.0986
        >>> round(loss(output, torch.tensor([[6.0, 0.0]])).item(), 4)  # censored in it: log 3/2
        0.4055
    """

    edges: Tensor

    def __init__(self, edges: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("edges", torch.tensor(edges, dtype=torch.float64), persistent=False)
        if len(edges) < 3 or not (self.edges.diff() > 0).all():
            raise ValueError(f"edges of time bins must rise and be three or more, got {list(edges)}")

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar, mean over the patients whose follow-up is known; a batch without any costs 0.

        Args:
            output: has ``logits`` ``[b, K]``.
            label: time and event (1, or 0 where censored), ``[b, 2]``; NaN where unknown.

        Raises:
            ValueError: there are not as many logits as bins.
        """
        logits = output["logits"]
        bins = len(self.edges) - 1
        if logits.shape[1] != bins:
            raise ValueError(f"the network has {logits.shape[1]} outputs for {bins} time bins; set num_classes={bins}")
        log_incidence = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)
        time, event = label.to(logits.device, torch.float64).reshape(-1, 2).unbind(dim=1)
        known = ~(time.isnan() | event.isnan())
        place = torch.bucketize(time.nan_to_num(0.0), self.edges.to(time.device)[1:-1], right=True)
        happened = log_incidence.gather(1, place[:, None])[:, 0]
        losses = -torch.where(event == 1, happened, _log_survival(log_incidence, place))
        return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)


def _log_survival(log_incidence: Tensor, place: Tensor) -> Tensor:
    """``log sum_{k > t} p_k`` of every row, 0 in the last bin, where it is not defined."""
    bins = log_incidence.shape[1]
    earlier = place.clamp(max=bins - 2)
    later = torch.arange(bins, device=place.device) > earlier[:, None]
    survival = log_incidence.masked_fill(~later, -float("inf")).logsumexp(dim=1)
    return torch.where(place < bins - 1, survival, 0.0)
