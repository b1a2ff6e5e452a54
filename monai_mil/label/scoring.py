"""How useful a label would be: what a model's answers say of their own doubt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monai_mil.heatmaps import Heatmap, drawing_style
from monai_mil.label.store import Scores

if TYPE_CHECKING:
    from monai_mil.label.model import ServedModel

PASSES = 10
_TOP = 10


def entropy(prob: np.ndarray | Sequence[float]) -> float:
    """``-sum p log p`` of probabilities that sum to 1, in nats; of labels that do not exclude each other their sum.

    Examples:
        >>> from monai_mil.label import entropy
        >>> round(entropy([0.5, 0.5]), 4), entropy([1.0, 0.0])
        (0.6931, 0.0)
    """
    values = np.asarray(prob, float)
    if not np.isclose(values.sum(), 1, atol=1e-4):
        values = np.stack([values, 1 - values])
    known = values[values > 0]
    return max(0.0, float(-(known * np.log(known)).sum()))


def mutual_information(probs: np.ndarray | Sequence[Sequence[float]]) -> float:
    """What several answers ``[t, c]`` disagree in: the entropy of their mean less the mean of theirs, in nats.

    0 where all say the same, however doubtful. Of the passes of one network with dropout it is BALD (Houlsby et al.
    2011), of several networks the committee's vote (McCallum and Nigam 1998).

    Examples:
        >>> from monai_mil.label import mutual_information
        >>> round(mutual_information([[1, 0], [0, 1]]), 4), mutual_information([[0.5, 0.5], [0.5, 0.5]])
        (0.6931, 0.0)
    """
    values = np.asarray(probs, float)
    return max(0.0, entropy(values.mean(axis=0)) - float(np.mean([entropy(row) for row in values])))


def heat_entropy(heatmap: Heatmap) -> float:
    """How unsure a model is where the finding lies, 0 to 1.

    Of scores from 0 to 1 the mean entropy of the ten highest tiles, in bits; of attention, and of scores on another
    scale, the entropy of their share of the whole, 1 where all tiles are alike.
    """
    scores = heatmap.tile_scores.astype(float)
    if drawing_style(heatmap).scale.is_unit:
        top = np.sort(scores)[-_TOP:]
        return float(np.mean([entropy([each, 1 - each]) for each in top]) / np.log(2))
    if len(scores) == 1:
        return 0.0
    shifted = scores if scores.min() >= 0 else np.exp(scores - scores.max())
    return entropy(shifted / shifted.sum()) / float(np.log(len(scores))) if shifted.sum() > 0 else 1.0


def score_image(model: ServedModel, name: str, path: Path, series_uid: str | None = None) -> Scores:
    """All that one model's answer about an image says of its own doubt.

    ``uncertainty`` is the entropy of the answer; ``heat`` that of the map, of slides; ``bald`` is there where the
    network has dropout, ``anchor`` where the anchor of its training lies beside the weights.

    Raises:
        MonaiMILError: the image cannot be answered.
    """
    answer = model.answer(name, path, series_uid)
    values = {"uncertainty": entropy(answer.prediction.prob)}
    if answer.heatmap is not None:
        values["heat"] = heat_entropy(answer.heatmap)
    if model.has_dropout:
        values["bald"] = mutual_information(model.drawn_probabilities(name, path, series_uid, passes=PASSES))
    if model.has_anchor:
        values["anchor"] = model.anchor_disagreement(name, path, series_uid)
    facts = answer.facts
    return Scores(answer.fingerprint, values, str(facts["prediction"]), facts["probabilities"])
