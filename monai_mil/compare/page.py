"""What a comparison's page shows of every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.compare.plan import Plan
from monai_mil.compare.results import MethodResults, RunResult
from monai_mil.compare.shown import note_text, reason_text, shown_table
from monai_mil.compare.table import Row, figures_of
from monai_mil.metrics import auroc
from monai_mil.reports import ComparedMethod, write_comparison

_LEVEL = 0.05
_FEWEST_POINTS = 10  # of which t-SNE makes a picture


def write_comparison_page(plan: Plan, results: Sequence[MethodResults], rows: Sequence[Row], path: Path) -> None:
    """Write the page of a comparison; see :func:`monai_mil.reports.write_comparison`."""
    titles, cells = shown_table(plan, rows)
    shown = [figure for figure in figures_of(plan) if figure.title in titles]
    methods = [
        ComparedMethod(
            row.name,
            own,
            {figure.title: _verdict(row, figure.name) for figure in shown},
            {figure.title: row.figures[figure.name].over_folds for figure in shown},
            _curves(list(result.runs.values()), plan),
            _vectors(result),
            row.config,
            row.line,
            reason_text(row) if row.reason else "",
        )
        for row, own, result in zip(rows, cells, results, strict=True)
    ]
    cases, folds = f"{len(plan.cohort)} {plan.cohort.case}s", len(plan.cohort.folds)
    seeds = len(plan.jobs) // (folds * len(plan.competitors))
    write_comparison(
        path,
        titles,
        methods,
        title="Comparison of methods",
        summary=f"{cases}, folds by patient: {folds}, seeds: {seeds}, epochs: {plan.epochs}",
        note=note_text(plan, rows),
        classes=plan.classes,
        axes=_axes(plan, results),
        settings={"reference": plan.reference, "selection": "best validation, of all epochs"},
    )


def _verdict(row: Row, figure: str) -> str:
    each = row.figures[figure]
    if not each.corrected < _LEVEL:
        return ""
    return "good" if each.difference.value > 0 else "bad"


def _axes(plan: Plan, results: Sequence[MethodResults]) -> dict[str, tuple[str, str, bool]]:
    name = "concordance" if plan.survival else "AUROC"
    losses = [row["loss"] for result in results for run in result.runs.values() for row in run.history]
    positive = all(loss > 0 for loss in losses)  # AEM's, which rewards entropy, falls below 0
    axes = {
        "Training loss": ("epoch", "mean loss, logarithmic," if positive else "mean loss", positive),
        "Learning curves": ("epoch", f"validation {name}", False),
        "Test curves": ("epoch", "test AUROC, which chooses nothing", False),
        "Stability of attention": ("epoch", "Jensen-Shannon divergence from the epoch before, logarithmic,", True),
    }
    if plan.jobs[0].sweep is not None:
        key, tried = plan.jobs[0].sweep
        axes["Sweep"] = (f"place of {key} in {', '.join(map(str, tried))}", "test AUROC", False)
    return axes


def _curves(runs: Sequence[RunResult], plan: Plan) -> dict[str, list[list[tuple[float, float]]]]:
    key = "val_concordance" if plan.survival else "val_auroc"
    curves = {
        "Training loss": [_points(run.history, "loss") for run in runs],
        "Learning curves": [_points(run.history, key) for run in runs],
        "Test curves": [_points(run.history, "test_auroc") for run in runs],
        "Stability of attention": [_points(run.stability, "jsd") for run in runs],
    }
    sweep = plan.jobs[0].sweep
    if sweep is not None:
        named = [str(value) for value in sweep[1]]
        curves["Sweep"] = [
            [(place, auroc(*run.sweep[name])) for place, name in enumerate(named, start=1) if name in run.sweep]
            for run in runs
        ]
    return curves


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]


def _vectors(result: MethodResults) -> tuple[np.ndarray, list[int]] | None:
    """Bag vectors of the first finished run in the plane, and the classes of their cases."""
    if not result.runs:
        return None
    first = min(result.runs)
    run, path = result.runs[first], result.jobs[first].folder / "bag_vectors.npz"
    if not path.is_file() or run.label.ndim > 1:
        return None
    with np.load(path) as stored:
        names, vectors = stored["names"].tolist(), stored["vectors"]
    class_of = dict(zip(run.patient_of, run.label.tolist(), strict=True))
    if len(names) < _FEWEST_POINTS or not np.isfinite(vectors).all():
        return None
    from sklearn.manifold import TSNE

    tsne = TSNE(perplexity=min(30, (len(names) - 1) // 3), init="random", random_state=0)
    return tsne.fit_transform(vectors), [int(class_of[name]) for name in names]
