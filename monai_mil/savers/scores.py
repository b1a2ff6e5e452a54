"""Which scores of a case are drawn: the tensor, and the class where it has one row a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from monai_mil.errors import CohortError
from monai_mil.names import says_nothing_there
from monai_mil.savers.case import Case
from monai_mil.savers.tree_case import finest_tiles, is_packed

ClassIndex = int | Literal["all"] | None
Asked = TypeVar("Asked", bound=ClassIndex)
PROBABLE = -1
"""In place of a class's index: the most probable one."""
"""The class to draw: its index, all of them, or None for the second of two exclusive ones, else the most probable."""


@dataclass(frozen=True)
class DrawnMap:
    """One of the maps that are drawn of a case.

    Attributes:
        class_index: its class; None as in :func:`drawn_class`.
        label: what tells it from the case's other maps; empty where it is the only one.
    """

    class_index: int | None
    label: str = ""

    def stem(self, name: str) -> str:
        """How files of a case of this name begin: ``<name>``, or ``<name>_<label>``."""
        return f"{name}_{self.label}" if self.label else name

    def title(self, name: str) -> str:
        """Scores of this name, with the label."""
        return f"{name} {self.label}" if self.label else name


def drawn_maps(case: Case, key: str | None, class_index: ClassIndex, classes: Sequence[str] | None) -> list[DrawnMap]:
    """One map of each class if all are asked for and the scores differ by class, else one.

    Args:
        case: the case.
        key: see :func:`read_scores`.
        class_index: the class, ``"all"``, or None as in :func:`drawn_class`.
        classes: their names; None labels them by number.

    Raises:
        CohortError: there are no scores or no coordinates.
    """
    if class_index != "all":
        return [DrawnMap(class_index)]
    count = len(read_score_rows(case, key)[1])
    if count == 1:
        return [DrawnMap(None)]
    names = classes if classes is not None and len(classes) == count else range(count)
    return [DrawnMap(index, str(name)) for index, name in enumerate(names)]


def usual_class(class_index: Asked, classes: Sequence[str] | None, multi_label: bool) -> Asked | int:
    """The class that is asked for; where none is, of two classes that are both findings the most probable one."""
    both = classes is not None and len(classes) == 2 and not multi_label and not says_nothing_there(str(classes[0]))
    return PROBABLE if class_index is None and both else class_index


def check_labels(class_index: ClassIndex, classes: Sequence[str] | None) -> None:
    """Raise a ValueError unless every class that has files of its own can name them."""
    if class_index == "all":
        for name in classes or ():
            if Path(name).name != name:
                raise ValueError(f"class '{name}' cannot name the files of its heatmaps; use a name without '/'")


def read_scores(
    case: Case, key: str | None, class_index: int | None, multi_label: bool = False
) -> tuple[str, np.ndarray, np.ndarray]:
    """Name, scores ``[n]`` or ``[n, h, w]`` and coordinates ``[n, 2]`` of one case, padding removed.

    Args:
        case: the case.
        key: which of its tensors; None takes the first there is of ``heatmap``, ``scores``, ``instance_scores`` (one
            row a class) and ``attention`` (one row a head, averaged).
        class_index: row of a tensor with one row a class; None as in :func:`drawn_class`.
        multi_label: classes do not exclude each other.

    Raises:
        CohortError: there are no scores, no coordinates or no such class, or the numbers differ.
    """
    key, rows, coords = read_score_rows(case, key)
    return key, rows[_row(case, len(rows), class_index, multi_label, key)], coords


def read_threshold(case: Case, class_index: int | None, multi_label: bool = False) -> float:
    """The network's own ``threshold`` of the class that :func:`read_scores` takes.

    Raises:
        CohortError: it has none.
    """
    values = case.values("threshold")
    if values is None:
        raise CohortError(f"{case.text}: the network gives no 'threshold'; choose \"otsu\" or a number")
    return float(values[_row(case, len(values), class_index, multi_label, "threshold")])


def drawn_class(case: Case, class_index: int | None, multi_label: bool = False) -> int:
    """The class whose scores :func:`read_scores` takes.

    None is the second of two exclusive classes, so that a map shows evidence of the finding on a slide without it too,
    and the most probable of others, as :data:`PROBABLE` is always.
    """
    if class_index == PROBABLE:
        return case.probable_class
    if class_index is not None:
        return class_index
    return 1 if case.output_count == 2 and not multi_label else case.probable_class


def read_score_rows(case: Case, key: str | None) -> tuple[str, np.ndarray, np.ndarray]:
    """As :func:`read_scores`, with the scores of every class: ``[rows, n]`` or ``[rows, n, h, w]``.

    Of a case of several magnifications they are those of the finest level's tiles (see
    :func:`monai_mil.savers.tree_case.finest_tiles`): one row of instance scores, which are the same for every class,
    or the finest level's attention.
    """
    known = ("heatmap", "scores", "instance_scores", "attention")
    given = {name: case.values(name) for name in ((key,) if key else known)}
    key = next((name for name, values in given.items() if values is not None), None)
    coords = case.values("coords")
    if key is None or coords is None:
        raise CohortError(
            f"{case.text}: no heatmap without 'coords' and one of {', '.join(known)} among its keys; "
            "ask the network for its full output"
        )
    rows = given[key]
    assert rows is not None
    rows = rows[None] if rows.ndim == 1 else rows
    if is_packed(case) and key != "instance_logits":
        rows = rows[-1:]
    elif "attention" in key:
        rows = rows.mean(axis=0, keepdims=True)
    if len(coords) != rows.shape[1]:
        raise CohortError(f"{case.text}: {rows.shape[1]} scores for {len(coords)} coordinates")
    if is_packed(case):
        shown = finest_tiles(case)
        return key, rows[:, shown], coords[shown]
    return key, rows, coords


def _row(case: Case, count: int, class_index: int | None, multi_label: bool, key: str) -> int:
    """Which of ``count`` rows, one a class, is drawn."""
    row = 0 if count == 1 else drawn_class(case, class_index, multi_label)
    if not 0 <= row < count:
        raise CohortError(f"{case.text}: no class {row} among the {count} rows of '{key}'")
    return row
