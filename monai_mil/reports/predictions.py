"""The predictions table: what the report reads."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_mil.cells import cell_text
from monai_mil.errors import CohortError
from monai_mil.metrics import decisions

_NAMES = ("slide_id", "scan_id", "patient_id")
_DIGITS = 2e-5
"""By how much, of itself, a probability in a table may be off, and its operating point."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """``predictions.csv`` in memory, one entry a slide or scan.

    Attributes:
        slide_ids: names of the slides or scans, all different.
        patient_ids: whose they are; the slide's id where the table does not say.
        classes: names of the classes.
        prob: probability of every class, float64 ``[n, c]``.
        truth: 1 where a class is true, 0 where not, NaN where unknown, float64 ``[n, c]``.
        multi_label: classes do not exclude each other; one class alone has nothing to exclude.
        pred_text: the ``pred`` column.
        label_text: the ``label`` column.
        noun: what an entry is, ``slide``, ``scan`` or ``patient``.
        operating_points: the probability from which on each class is called, see
            :func:`monai_mil.metrics.thresholds.decisions`; None calls the most probable class, or all of at least
            0.5.
        model: digest of the model's weights, or None where the table does not say.
        remarks: what the reader of each slide or scan assumed, repaired or left out.
        note: what must be known of the model, or None.
        parts: of each entry the slides or scans it is made of: its own name but for a patient's.
    """

    slide_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    classes: tuple[str, ...]
    prob: np.ndarray
    truth: np.ndarray
    multi_label: bool
    pred_text: tuple[str, ...]
    label_text: tuple[str, ...]
    noun: str = "slide"
    operating_points: tuple[float, ...] | None = None
    model: str | None = None
    remarks: tuple[str, ...] = ()
    parts: tuple[tuple[str, ...], ...] = ()
    note: str | None = None

    def __len__(self) -> int:
        return len(self.slide_ids)

    @property
    def knows_patients(self) -> bool:
        """Whether the table says whose any slide is."""
        return self.patient_ids != self.slide_ids

    @property
    def labelled(self) -> np.ndarray:
        """True for slides of which at least one class is known, bool ``[n]``."""
        return ~np.isnan(self.truth).all(axis=1)

    @property
    def predicted(self) -> np.ndarray:
        """1 where a class is predicted, int ``[n, c]``.

        Where a probability is as near to its operating point as the digits of the table, ``pred`` decides.
        """
        points = np.array(self.operating_points or (0.5,) * len(self.classes))
        below, decided, above = (
            decisions(self.prob, (points * share).tolist(), exclusive=not self.multi_label).astype(int)
            for share in (1 - _DIGITS, 1, 1 + _DIGITS)
        )
        for row in np.flatnonzero((below != above).any(axis=1)).tolist():
            named = set(self.pred_text[row].split(";") if self.multi_label else [self.pred_text[row]]) - {""}
            if named <= set(self.classes) and (named or self.multi_label):
                decided[row] = [name in named for name in self.classes]
        return decided

    @property
    def wrong(self) -> np.ndarray:
        """True for slides with a known class that is predicted wrongly, bool ``[n]``."""
        return (~np.isnan(self.truth) & (self.predicted != self.truth)).any(axis=1)

    @property
    def certainty(self) -> np.ndarray:
        """Probability of the most certain statement about each slide, float64 ``[n]``."""
        return np.maximum(self.prob, 1 - self.prob).max(axis=1) if self.multi_label else self.prob.max(axis=1)

    @property
    def curves(self) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Name, probabilities and truth (0, 1) of every class worth a curve; of two exclusive ones the second."""
        classes = range(len(self.classes))
        if not self.multi_label and len(self.classes) == 2:
            classes = range(1, 2)
        known = ~np.isnan(self.truth)
        return [(self.classes[c], self.prob[known[:, c], c], self.truth[known[:, c], c].astype(int)) for c in classes]


def read_predictions(path: str | Path) -> Predictions:
    """Read ``predictions.csv``, or ``patients.csv``.

    Raises:
        CohortError: the table is missing or empty, a column is missing, a case stands twice, a probability is no
            number in [0, 1] or a label is no class; names file, row and column.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise CohortError(f"predictions '{path}': cannot be read ({error.strerror}); run inference first") from error
    except UnicodeDecodeError as error:
        raise CohortError(f"predictions '{path}': not UTF-8 text ({error.reason}); save it as UTF-8 CSV") from error
    if not rows:
        raise CohortError(f"predictions '{path}': the table has no rows; run inference first")
    columns = [name for name in rows[0] if name]
    classes = tuple(name.removeprefix("prob_") for name in columns if name.startswith("prob_"))
    id_column = next((name for name in _NAMES if name in columns), _NAMES[0])
    if "risk" in columns:
        raise CohortError(f"predictions '{path}': risks of a survival network; give its survival.json to the report")
    missing = [name for name in (id_column, "pred") if name not in columns] + ([] if classes else ["prob_<class>"])
    if missing:
        raise CohortError(f"predictions '{path}': no column {', '.join(missing)}; it has {', '.join(columns)}")
    slide_ids = tuple(row[id_column] for row in rows)
    noun = id_column.removesuffix("_id")
    if len(set(slide_ids)) < len(rows):
        twice = next(name for name in slide_ids if slide_ids.count(name) > 1)
        raise CohortError(f"predictions '{path}': {noun} '{twice}' stands there twice; keep one row a {noun}")
    multi_label = len(classes) == 1 or any(f"label_{name}" in columns for name in classes)
    prob = np.array(
        [[_unit(path, number, row, f"prob_{name}") for name in classes] for number, row in enumerate(rows, 2)]
    )
    if np.isnan(prob).any():
        raise CohortError(
            f"predictions '{path}': row {2 + int(np.argwhere(np.isnan(prob))[0, 0])}: a probability is empty"
        )
    if multi_label:
        truth = [[_unit(path, i, row, f"label_{name}") for name in classes] for i, row in enumerate(rows, 2)]
    else:
        truth = [_one_hot(path, i, row.get("label") or "", classes) for i, row in enumerate(rows, 2)]
    return Predictions(
        slide_ids,
        tuple(row.get("patient_id") or row[id_column] for row in rows),
        classes,
        prob,
        np.array(truth),
        multi_label,
        tuple(row["pred"] for row in rows),
        tuple(row.get("label") or "" for row in rows),
        noun,
        _operating_points(path, rows, classes),
        _model(path, rows),
        tuple(cell_text(row.get("remarks") or "") for row in rows),
        tuple(tuple((row.get("slide_ids") or row.get("scan_ids") or row[id_column]).split(";")) for row in rows),
        next((row["note"] for row in rows if row.get("note")), None),
    )


def _model(path: Path, rows: list[dict[str, str]]) -> str | None:
    """The model of all rows.

    Raises:
        CohortError: there are several.
    """
    models = {row.get("model") or "" for row in rows}
    if len(models) > 1:
        raise CohortError(
            f"predictions '{path}': rows of {len(models)} models ({', '.join(sorted(models))}); report each by itself"
        )
    return models.pop() or None


def _operating_points(path: Path, rows: list[dict[str, str]], classes: tuple[str, ...]) -> tuple[float, ...] | None:
    """One for each class where the table has them.

    Raises:
        CohortError: a class has none or several.
    """
    columns = [f"operating_point_{name}" for name in classes]
    if not any(column in rows[0] for column in columns):
        return None
    points = []
    for column in columns:
        found = {_unit(path, number, row, column) for number, row in enumerate(rows, 2)}
        if len(found) != 1 or np.isnan(min(found)):
            raise CohortError(f"predictions '{path}': column '{column}' must hold one number from 0 to 1 in all rows")
        points.append(found.pop())
    return tuple(points)


def _unit(path: Path, number: int, row: dict[str, str], column: str) -> float:
    """A number in [0, 1]; NaN where the cell is empty."""
    text = (row.get(column) or "").strip()
    if not text:
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise CohortError(f"predictions '{path}': row {number}, column '{column}': '{text}' is no number from 0 to 1")
    return value


def _one_hot(path: Path, number: int, label: str, classes: tuple[str, ...]) -> list[float]:
    if not label:
        return [float("nan")] * len(classes)
    if label not in classes:
        raise CohortError(
            f"predictions '{path}': row {number}, column 'label': '{label}' is none of {', '.join(classes)}"
        )
    return [float(name == label) for name in classes]
