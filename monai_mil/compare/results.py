"""What the finished jobs of a comparison say, read from their folders."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.compare.job import Job
from monai_mil.compare.plan import Plan
from monai_mil.compare.watching import read_history
from monai_mil.errors import SettingsError
from monai_mil.files import parse_json
from monai_mil.metrics import Array, FoldAnswers

Key = tuple[int, int]
"""Fold and seed."""


@dataclass(frozen=True, eq=False)
class RunResult:
    """One finished job.

    Attributes:
        said: the content of ``result.json``.
        patients: whose each test case is, ``n``.
        prob: probabilities ``[n, c]``, or ranks of risk ``[n]`` of survival; in the order of the cases' names.
        label: class indices ``[n]``, or 0, 1 and NaN ``[n, c]``; of survival time and event ``[n, 2]``.
        overlap: by what is compared, ``dice`` of pixels and ``tile_dice``, the values of positive cases by name.
        patient_of: whose every case is.
        froc: mean sensitivity of the fold's FROC, None without any.
        history: a row an epoch.
        stability: likewise, of attention; empty without any.
        sweep: AUROC by the value that was swept.
        folder: of the chosen model.
        features: what the network saw, as its model card says.
    """

    said: Mapping[str, Any]
    patients: tuple[str, ...]
    prob: Array
    label: Array
    overlap: Mapping[str, Mapping[str, float]]
    patient_of: Mapping[str, str]
    froc: float | None
    history: Sequence[Mapping[str, Any]]
    stability: Sequence[Mapping[str, Any]]
    sweep: Mapping[str, tuple[Array, Array]]
    folder: Path
    features: str


@dataclass(frozen=True, eq=False)
class MethodResults:
    """All jobs of one method.

    Attributes:
        name: of the method.
        runs: the finished ones.
        failures: why the others are not.
        asked: how many there are to be.
        jobs: all of them.
    """

    name: str
    runs: Mapping[Key, RunResult]
    failures: Mapping[Key, str]
    asked: int
    jobs: Mapping[Key, Job]

    def answers(self, keys: Sequence[Key] | None = None) -> list[FoldAnswers]:
        """The answers of the finished runs, or of those of some keys, fold by fold."""
        return [
            FoldAnswers(np.stack([run.prob for run in runs]), runs[0].label, runs[0].patients)
            for runs in self._by_fold(keys)
        ]

    def overlaps(self, what: str, keys: Sequence[Key] | None = None) -> list[FoldAnswers]:
        """The Dice of positive cases in place of answers; only folds that have any."""
        folds = []
        for runs in self._by_fold(keys):
            names = sorted(set.intersection(*(set(run.overlap.get(what, {})) for run in runs)))
            if names:
                values = np.array([[run.overlap[what][name] for name in names] for run in runs])
                patients = [runs[0].patient_of[name] for name in names]
                folds.append(FoldAnswers(values, np.zeros(len(names)), patients))
        return folds

    def _by_fold(self, keys: Sequence[Key] | None) -> list[list[RunResult]]:
        chosen = sorted(self.runs if keys is None else keys)
        folds = [[self.runs[key] for key in chosen if key[0] == fold] for fold in sorted({key[0] for key in chosen})]
        for runs in folds:
            if any(run.patient_of != runs[0].patient_of for run in runs):
                raise SettingsError(
                    f"'{runs[0].folder.parent}': the seeds of a fold answered for other cases, bags were missing or "
                    "damaged for some; remove these folders to run them again"
                )
        return folds


def refuse_no_numbers(evaluation: Path) -> None:
    """Make sure that an evaluation's answers are finite numbers.

    Raises:
        SettingsError: one is not; names the case.
    """
    for row in _rows(evaluation / "predictions.csv"):
        answers = [cell for name, cell in row.items() if name.startswith("prob_") or name == "risk"]
        if not all(math.isfinite(float(cell or "nan")) for cell in answers):
            raise SettingsError(f"the answer for {next(iter(row.values()))} is no finite number: training has diverged")


def read_results(plan: Plan) -> list[MethodResults]:
    """The results of every method, in the plan's order."""
    results = []
    for competitor in plan.competitors:
        jobs = {(job.fold, job.seed): job for job in plan.jobs if job.competitor is competitor}
        runs, failures = {}, {}
        for key, job in sorted(jobs.items()):
            said = job.finished()
            if said is not None:
                runs[key] = _read(job, said, plan)
            elif (reason := job.failed()) is not None:
                failures[key] = reason
        results.append(MethodResults(competitor.name, runs, failures, len(jobs), jobs))
    return results


def _read(job: Job, said: Mapping[str, Any], plan: Plan) -> RunResult:
    folder = job.out / said["folder"]
    evaluation = folder / "eval"
    survival = plan.survival
    rows = _rows(evaluation / ("survival.csv" if survival else "predictions.csv"))
    name = "patient_id" if survival else plan.cohort.id_column
    rows.sort(key=lambda row: row[name])
    patient_of = {row[name]: row.get("patient_id") or row[name] for row in rows}
    prob, label = _survival(rows) if survival else _answers(rows, plan)
    localisation = _json(evaluation / "localisation.json")
    overlap = {
        what: {row[plan.cohort.id_column]: float(row["dice"]) for row in _rows(evaluation / file) if row["dice"]}
        for what, file in (("dice", "dice.csv"), ("tile_dice", "localisation.csv"))
    }
    return RunResult(
        said,
        tuple(patient_of.values()),
        prob,
        label,
        overlap,
        patient_of,
        (localisation.get("froc") or {}).get("score"),
        read_history(folder / "history.json"),
        _json(folder / "attention_stability.json").get("epochs", []),
        {} if survival else _sweep(folder / "sweep", plan),
        folder,
        _features(_json(folder / "models" / "model.json").get("settings", {})),
    )


def _features(card: Mapping[str, Any]) -> str:
    """The encoder and its width; a preset of slices stands in some bundles' cards only."""
    named = " ".join(str(card[name]) for name in ("encoder", "encoder_digest") if card.get(name))
    return f"{named or 'unknown encoder'}, {card.get('in_channels')} channels"


def _answers(rows: Sequence[Mapping[str, str]], plan: Plan) -> tuple[Array, Array]:
    classes = plan.classes
    prob = np.array([[float(row[f"prob_{name}"]) for name in classes] for row in rows])
    if len(plan.cohort.labels) > 1:
        cells = [[row[f"label_{name}"] for name in classes] for row in rows]
        return prob, np.array([[float(cell) if cell else math.nan for cell in row] for row in cells])
    return prob, np.array([classes.index(row["label"]) for row in rows])


def _survival(rows: Sequence[Mapping[str, str]]) -> tuple[Array, Array]:
    from scipy.stats import rankdata

    risk = np.array([float(row["risk"]) for row in rows])
    return rankdata(risk) / len(risk), np.array([[float(row["time"]), float(row["event"])] for row in rows])


def _sweep(folder: Path, plan: Plan) -> dict[str, tuple[Array, Array]]:
    found = {}
    for path in sorted(folder.glob("*/predictions.csv")):
        rows = sorted(_rows(path), key=lambda row: row[plan.cohort.id_column])
        found[path.parent.name.partition("=")[2]] = _answers(rows, plan)
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
