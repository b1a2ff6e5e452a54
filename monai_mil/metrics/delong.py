"""The covariance of AUROCs of the same cases, patients whole: DeLong's, as Obuchowski made it one of clusters."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.metrics.bootstrap import group_numbers
from monai_mil.metrics.classification import Array, one_versus_rest


@dataclass(frozen=True, eq=False)
class AurocCovariance:
    """AUROCs of ``r`` readers of the same cases.

    Attributes:
        auroc: ``[r]``, as :func:`monai_mil.metrics.auroc` gives them; NaN where there is none.
        covariance: ``[r, r]``, NaN where fewer than two patients have positive cases, or negative ones.
    """

    auroc: Array
    covariance: Array


def auroc_covariance(prob: ArrayLike, label: ArrayLike, groups: Sequence[Hashable] | None = None) -> AurocCovariance:
    """AUROCs of several readers of the same cases, and how they vary together from sample to sample of patients.

    Obuchowski (Biometrics 1997), with one case a patient DeLong et al. (1988). Of the positive case ``x`` let
    ``V10(x)`` be the share of negative cases below it (ties count half), of the negative case ``y`` let ``V01(y)`` be
    the share of positive cases above it, both less the AUROC. ``a_i`` is the sum of ``V10`` over patient ``i``'s
    positive cases, divided by all ``M`` of them, ``b_i`` the sum of ``V01`` over the negative ones, divided by ``N``.
    Then ``cov(r, s) = k10 sum_i a_i^r a_i^s + k01 sum_i b_i^r b_i^s + k11 sum_i (a_i^r b_i^s + b_i^r a_i^s)`` with
    ``k = I / (I - 1)`` of the patients that have positive cases, negative cases, or any. For a macro mean over classes
    or labels ``a`` and ``b`` are means over them.

    Args:
        prob: of every reader, ``[r, n]`` or ``[r, n, c]``; see :func:`monai_mil.metrics.auroc`.
        label: see there.
        groups: patient of every case, ``[n]``; None lets every case be its own.

    Raises:
        ValueError: as :func:`monai_mil.metrics.auroc`.

    Examples:
        >>> from monai_mil.metrics import auroc_covariance
        >>> readers = [[0.1, 0.4, 0.35, 0.8, 0.3], [0.2, 0.3, 0.6, 0.7, 0.1]]
        >>> result = auroc_covariance(readers, [0, 0, 1, 1, 0], groups=["P1", "P1", "P2", "P3", "P4"])
        >>> result.auroc.round(4), result.covariance.shape
        (array([0.8333, 1.    ]), (2, 2))
    """
    readers = np.asarray(prob, dtype=float)
    rows = np.arange(readers.shape[1])
    questions = [one_versus_rest(reader, label, rows) for reader in readers]
    patients = rows if groups is None else group_numbers(groups)
    count = int(patients.max()) + 1
    parts = [_clusters(question, patients, count) for question in zip(*questions, strict=True)]
    asked = [part for part in parts if part is not None]
    if not asked:
        nothing = np.full(len(readers), np.nan)
        return AurocCovariance(nothing, np.full((len(readers), len(readers)), np.nan))
    means = [np.mean(values, axis=0) for values in zip(*asked, strict=True)]
    auroc, positive, negative, scaled_positive, scaled_negative = means
    both = count / max(count - 1, 1) * (positive @ negative.T)
    covariance = scaled_positive @ scaled_positive.T + scaled_negative @ scaled_negative.T + both + both.T
    return AurocCovariance(auroc, covariance)


def _clusters(
    question: tuple[tuple[Array, Array, Array], ...], patients: Array, count: int
) -> tuple[Array, ...] | None:
    """AUROC ``[r]`` and ``a``, ``b``, ``a sqrt(k10)`` and ``b sqrt(k01)`` ``[r, patients]`` of one question."""
    from scipy.stats import rankdata

    scores = np.stack([score for score, _, _ in question])
    _, truth, rows = question[0]
    own = patients[rows[0].astype(int)]
    if truth.all() or not truth.any():
        return None
    ranks = rankdata(scores, axis=1)
    above = (ranks[:, truth] - rankdata(scores[:, truth], axis=1)) / (~truth).sum()
    below = 1 - (ranks[:, ~truth] - rankdata(scores[:, ~truth], axis=1)) / truth.sum()
    auroc = above.mean(axis=1)
    sums = []
    for share, members in ((above, own[truth]), (below, own[~truth])):
        place = np.zeros((len(members), count))
        place[np.arange(len(members)), members] = 1 / len(members)
        clusters = len(set(members.tolist()))
        sums.append(((share - auroc[:, None]) @ place, clusters / (clusters - 1) if clusters > 1 else np.nan))
    (positive, k10), (negative, k01) = sums
    return auroc, positive, negative, positive * np.sqrt(k10), negative * np.sqrt(k01)
