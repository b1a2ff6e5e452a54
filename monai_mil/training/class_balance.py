"""What a training does about classes that are not equally frequent: weights of the loss, or draws."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np

from monai_mil.errors import SettingsError
from monai_mil.training.balanced_sampler import BalancedSampler

logger = logging.getLogger(__name__)

BALANCED = "balanced"


class ClassBalance:
    """Weights of the classes for the bag loss, and the sampler of the training's data loader.

    Weights are scaled so that their mean over the training cases is 1: what torch's ``CrossEntropyLoss`` does in every
    batch, which in a batch of one bag would undo them. ``[1, 3]`` and ``[2, 6]`` are one choice, and neither the
    learning rate nor other terms of the loss have to follow. ``"balanced"`` is scikit-learn's
    ``n / (classes * count)``; of labels that do not exclude each other every one is balanced by itself, which makes the
    ratio of a label's two weights ``negative / positive`` (BCE's ``pos_weight``). Unknown labels do not count.

    Args:
        dataset: of the training; its ``data`` are dictionaries with a ``label``: a class index, or 0, 1 or NaN
            (unknown) for every class.
        classes: names of the classes in order; None where the labels are no classes of bags (follow-up, slices), which
            refuses both settings.
        class_weights: None, ``"balanced"``, or a number for every class; of labels that do not exclude each other the
            weight of label 1, that of 0 being 1.
        sampler: None, or ``"balanced"``: an epoch draws every class equally often. Of labels that do not exclude each
            other it draws for every label from the cases that have it, and as often from those that have none.
        multi_label: classes do not exclude each other.
        one_output: the network has one output for two classes.
        seed: of the draws.

    Attributes:
        positive_weights: for :func:`monai_mil.losses.bag_loss`, a number for every output; None without weights.
        negative_weights: likewise of outputs whose label is 0; None for classes that exclude each other by a softmax.

    Raises:
        SettingsError: a setting is none of these, a class has no training case, or the labels are no classes.

    Examples:
        >>> from monai.data import Dataset
        >>> from monai_mil.training import ClassBalance
        >>> dataset = Dataset([{"label": 0}, {"label": 0}, {"label": 0}, {"label": 1}])
        >>> balance = ClassBalance(dataset, ["normal", "tumor"], class_weights="balanced")
        >>> [round(weight, 3) for weight in balance.positive_weights]
        [0.667, 2.0]
    """

    def __init__(
        self,
        dataset: Any,
        classes: Sequence[object] | None,
        class_weights: str | Sequence[float] | None = None,
        sampler: str | None = None,
        *,
        multi_label: bool = False,
        one_output: bool = False,
        seed: int = 0,
    ) -> None:
        self.positive_weights: list[float] | None = None
        self.negative_weights: list[float] | None = None
        self._sampler: BalancedSampler | None = None
        self._told: tuple[object, object, list[str]] | None = None
        if class_weights is None and sampler is None:
            return
        if classes is None:
            raise SettingsError(
                f"{_said(class_weights, sampler)}: what this training learns is no class of a bag (follow-up, or "
                "labels of slices), so that there is nothing to balance; leave it out"
            )
        if sampler not in (None, BALANCED):
            raise SettingsError(f"sampler '{sampler}': may be {BALANCED}, or left out")
        names = [str(name) for name in classes]
        present = _presence([item["label"] for item in dataset.data], names, multi_label)
        if class_weights is not None:
            self._weigh(present, _checked(class_weights, names), names, multi_label, one_output)
        if sampler == BALANCED:
            self._sampler = BalancedSampler(_groups(present, names, multi_label), len(present), seed)
        self._told = (class_weights, sampler, names)

    def tell(self) -> None:
        """Log the weights in use, and that two corrections are one too many; of several processes the first one does.

        In a config's ``run`` it makes sure that settings which are refused are so before a run begins.
        """
        if self._told is None or idist.get_rank() != 0:
            return
        class_weights, sampler, names = self._told
        for kind, weights in (("", self.positive_weights), (" of label 0", self.negative_weights)):
            if weights is not None and len(weights) == len(names):
                said = ", ".join(f"{name} {weight:.4g}" for name, weight in zip(names, weights, strict=True))
                logger.info("class weights%s: %s", kind, said)
        if class_weights == sampler:
            logger.warning(
                "class_weights balanced and sampler balanced correct the same twice: rare classes then count more than "
                "frequent ones; leave one of them out"
            )

    def sampler(self) -> BalancedSampler | None:
        """For the data loader of this process; None where cases are drawn as they are."""
        return self._sampler

    def _weigh(
        self, present: np.ndarray, given: np.ndarray | None, names: list[str], multi_label: bool, one_output: bool
    ) -> None:
        positive, negative = (present == 1).sum(axis=0), (present == 0).sum(axis=0)
        if given is None:
            _require(positive, names, "class_weights balanced", "no training case is")
            if multi_label:
                _require(negative, names, "class_weights balanced", "every training case is")
            given = negative / positive if multi_label else 1 / positive
        if multi_label:
            scale = (positive + negative) / np.maximum(given * positive + negative, np.finfo(float).tiny)
            self.positive_weights, self.negative_weights = (given * scale).tolist(), scale.tolist()
            return
        weights = (given * positive.sum() / max((given * positive).sum(), np.finfo(float).tiny)).tolist()
        if one_output:
            self.negative_weights, self.positive_weights = weights[:1], weights[1:]
        else:
            self.positive_weights = weights


def _presence(labels: Sequence[Any], names: list[str], multi_label: bool) -> np.ndarray:
    """1 where a case shows a class, 0 where not, NaN where unknown, ``[cases, classes]``."""
    values = np.asarray([np.asarray(label, dtype=float).ravel() for label in labels], dtype=float)
    if multi_label:
        return values
    present = (values == np.arange(len(names))).astype(float)
    present[values[:, 0] < 0] = np.nan
    return present


def _checked(class_weights: str | Sequence[float], names: list[str]) -> np.ndarray | None:
    """The numbers given; None for balanced ones."""
    if class_weights == BALANCED:
        return None
    if (
        isinstance(class_weights, str)
        or not isinstance(class_weights, Sequence)
        or not all(map(_is_number, class_weights))
    ):
        raise SettingsError(f"class_weights {class_weights!r}: may be {BALANCED}, a list of numbers, or left out")
    if len(class_weights) != len(names):
        raise SettingsError(
            f"class_weights {list(class_weights)}: {len(class_weights)} numbers for {len(names)} classes; give one for "
            f"each of {', '.join(names)}, in this order"
        )
    given = np.asarray(class_weights, dtype=float)
    if (given <= 0).any():
        raise SettingsError(f"class_weights {list(class_weights)}: every weight must be above 0")
    return given


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _groups(present: np.ndarray, names: list[str], multi_label: bool) -> list[list[int]]:
    """Indices of the cases of every class, and of labels that do not exclude each other of those without any."""
    shown = present == 1
    _require(shown.sum(axis=0), names, "sampler balanced", "no training case is")
    groups = [np.flatnonzero(column).tolist() for column in shown.T]
    without = np.flatnonzero(~shown.any(axis=1) & (present == 0).any(axis=1)).tolist()
    return [*groups, without] if multi_label and without else groups


def _require(counts: np.ndarray, names: list[str], setting: str, told: str) -> None:
    lacking = [f"'{name}'" for name, count in zip(names, counts, strict=True) if count == 0]
    if lacking:
        raise SettingsError(
            f"{setting}: {told} {' or '.join(lacking)}; leave the class out of class_names or its column out of "
            "label_columns, give the training split such a case, or leave the setting out"
        )


def _said(class_weights: object, sampler: object) -> str:
    given = {"class_weights": class_weights, "sampler": sampler}
    return " and ".join(f"{name} {value}" for name, value in given.items() if value is not None)
