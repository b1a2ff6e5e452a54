"""The table of a comparison: figures with intervals, tests against the reference, what each method costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from monai_mil.compare.job import Job
from monai_mil.compare.plan import Plan
from monai_mil.compare.results import Key, MethodResults
from monai_mil.metrics import (
    Array,
    FoldAnswers,
    Interval,
    Metric,
    auroc,
    balanced_accuracy,
    calibration,
    concordance_index,
    delong_test,
    fold_difference,
    fold_figure,
    holm,
    macro_f1,
    pooled,
    swap_test,
)

_NOTHING = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Figure:
    """What is compared.

    Attributes:
        name: its column.
        title: its name for a person.
        metric: of a fold's answers.
        answers: takes the answers, or the overlaps, of some runs.
        by_delong: tested so in place of by swapping.
    """

    name: str
    title: str
    metric: Metric
    answers: Callable[[MethodResults, Sequence[Key] | None], list[FoldAnswers]]
    by_delong: bool = False


@dataclass(frozen=True)
class Compared:
    """One figure of one method.

    Attributes:
        value: with its interval.
        over_folds: mean over seeds of every fold, for a chart.
        folds: in how many it is defined; the others have no part in the mean.
        cases: of these folds.
        pooled: of all folds' cases together.
        difference: to the reference on the same runs.
        p_value: of that, None of the reference itself.
        corrected: the same, corrected for all methods of the table.
    """

    value: Interval = _NOTHING
    over_folds: tuple[float, ...] = ()
    folds: int = 0
    cases: int = 0
    pooled: float = math.nan
    difference: Interval = _NOTHING
    p_value: float = math.nan
    corrected: float = math.nan


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: of the method.
        runs: how many are done.
        asked: of how many.
        reason: why some are not.
        figures: by name.
        costs: by name; NaN where unknown.
        config: what of which bundle it is.
        features: what its networks saw; empty where none is done.
        line: the command that repeats its first run into ``repeated/``, from within the comparison's folder.
    """

    name: str
    runs: int
    asked: int
    reason: str
    figures: Mapping[str, Compared]
    costs: Mapping[str, float]
    config: str
    features: str
    line: str
    is_reference: bool = field(default=False)


def figures_of(plan: Plan) -> list[Figure]:
    """What the methods of a comparison are judged by."""

    def of_answers(results: MethodResults, keys: Sequence[Key] | None = None) -> list[FoldAnswers]:
        return results.answers(keys)

    overlaps = [
        Figure(what, title, _mean, lambda results, keys=None, what=what: results.overlaps(what, keys))  # type: ignore[misc]
        for what, title in (("dice", "Dice"), ("tile_dice", "Dice of tiles"))
    ]
    if plan.survival:
        return [Figure("concordance", "Concordance", _concordance, of_answers)]
    return [
        Figure("auroc", "AUROC", auroc, of_answers, by_delong=True),
        Figure("macro_f1", "Macro F1", macro_f1, of_answers),
        Figure("balanced_accuracy", "Balanced accuracy", balanced_accuracy, of_answers),
        *overlaps,
    ]


def make_rows(plan: Plan, results: Sequence[MethodResults], n: int = 1000) -> list[Row]:
    """A row for every method.

    Args:
        plan: the comparison.
        results: of its methods.
        n: bootstrap resamples, and permutations of each test.
    """
    reference = next(one for one in results if one.name == plan.reference)
    compared: dict[str, dict[str, Compared]] = {one.name: {} for one in results}
    for figure in figures_of(plan):
        column = [_compare(figure, one, reference, n) for one in results]
        corrected = holm([each.p_value for each in column])
        for one, each, value in zip(results, column, corrected.tolist(), strict=True):
            compared[one.name][figure.name] = replace(each, corrected=value)
    return [_row(plan, one, compared[one.name], one is reference) for one in results]


def _compare(figure: Figure, one: MethodResults, reference: MethodResults, n: int) -> Compared:
    answers = figure.answers(one, None)
    if not answers:
        return Compared()
    over_folds = tuple(fold_figure(figure.metric, [fold], 0).value for fold in answers)
    defined = [fold for fold, value in zip(answers, over_folds, strict=True) if not math.isnan(value)]
    all_seeds = {len(fold.prob) for fold in answers}
    together = fold_figure(figure.metric, pooled(answers), 0).value if len(all_seeds) == 1 else math.nan
    value = fold_figure(figure.metric, answers, n)
    own = Compared(value, over_folds, len(defined), sum(len(fold.patients) for fold in defined), together)
    if one is reference:
        return own
    shared = sorted(set(one.runs) & set(reference.runs))
    first, second = (figure.answers(each, shared) for each in (one, reference))
    if not first or [fold.patients for fold in first] != [fold.patients for fold in second]:
        return own
    difference = fold_difference(figure.metric, first, second, n)
    p_value = delong_test(first, second) if figure.by_delong else swap_test(figure.metric, first, second, n)
    return replace(own, difference=difference, p_value=p_value)


def _row(plan: Plan, results: MethodResults, figures: Mapping[str, Compared], is_reference: bool) -> Row:
    runs = list(results.runs.values())
    reasons = sorted(set(results.failures.values()))
    reason = f"{reasons[0]}{f' (and {len(reasons) - 1} other reasons)' if len(reasons) > 1 else ''}" if reasons else ""
    own = next(one for one in plan.competitors if one.name == results.name)
    shown = min(results.runs or results.jobs)
    first, first_run = results.jobs[shown], results.runs.get(shown)
    return Row(
        results.name,
        len(runs),
        results.asked,
        reason,
        figures,
        {
            "calibration_error": math.nan if plan.survival else _mean_of(_calibration_error(run) for run in runs),
            "froc": _mean_of(run.froc for run in runs),
            "attention_jsd": _mean_of(_late_divergence(run.stability) for run in runs),
            "epoch": _mean_of(run.said["epoch"] for run in runs),
            "parameters": _mean_of(run.said["parameters"] for run in runs[:1]),
            "gflops": _mean_of(run.said["flops"] / 1e9 for run in runs[:1]),
            "instances": _mean_of(run.said["instances"] for run in runs[:1]),
            "seconds": _mean_of(run.said["seconds"] for run in runs),
            "memory_mib": _mean_of(run.said["memory_mib"] for run in runs),
        },
        own.words,
        "; ".join(sorted({run.features for run in runs})),
        line_of(first, 0 if first_run is None else int(first_run.said["point"])),
        is_reference,
    )


def line_of(job: Job, point: int) -> str:
    """The command that repeats a training and, where it ended well, its evaluation, typed in the comparison's folder.

    It writes into ``repeated/``: the runs themselves are left alone.
    """
    line = job.training(point).line
    if (job.point_folder(point) / "models" / "model.pt").is_file():
        line += f" && {job.evaluation(point).line}"
    return line.replace(f"{job.out}/runs/", "repeated/").replace(f"{job.out}/", "")


def _calibration_error(run: Any) -> float:
    return calibration(run.prob, run.label).expected_error


def _late_divergence(stability: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean Jensen-Shannon divergence between epochs over the second half of the training."""
    values = [epoch["jsd"] for epoch in stability[len(stability) // 2 :] if epoch["jsd"] is not None]
    return math.fsum(values) / len(values) if values else None


def _mean_of(values: Any) -> float:
    known = [float(value) for value in values if value is not None and not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _mean(prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
    """The weighted mean, as a metric."""
    values = np.asarray(prob, dtype=float)
    return values.mean() if weight is None else weight @ values / np.sum(weight, axis=-1)


def _concordance(prob: ArrayLike, label: ArrayLike, weight: Array | None = None) -> Any:
    """Harrell's C of labels ``[n, 2]``, as a metric; NaN without a comparable pair."""
    truth = np.asarray(label, dtype=float)
    weights = np.ones((1, len(truth))) if weight is None else weight
    values = concordance_index(prob, truth[:, 0], truth[:, 1], weights)
    return values if weight is not None else float(np.ravel(values)[0])
