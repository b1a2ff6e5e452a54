"""Normal Guidance against its baselines on drawn scans with one planted window, three seeds, 20 epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bundles import train_and_evaluate
from monai_mil.metrics import slice_metrics
from monai_mil.synthetic import ShiftedMean, make_shifted_mean_cohort

SEEDS = (1001, 2001, 3001)
SCANS = (800, 200, 300)
WIDTH = 64
_PLAIN: dict[str, Any] = {"guidance_lambda": 0.0}
_GUIDED: dict[str, Any] = {"guidance_lambda": 1.0}
_HEAD_MEAN: dict[str, Any] = {"loss__terms__guidance__per_head": False}
METHODS: dict[str, dict[str, Any]] = {
    "ABMIL": {"method": "abmil", **_PLAIN},
    "ABMIL + NG": {"method": "abmil", **_GUIDED},
    "SmAP": {"method": "smooth_abmil", **_PLAIN},
    "TransMIL": {"method": "transmil", **_PLAIN},
    "TransMIL + NG, head-mean": {"method": "transmil", **_GUIDED, **_HEAD_MEAN},
    "TransMIL + NG, per head": {"method": "transmil", **_GUIDED},
}
_FIGURES = ("auroc", "auprc")


def run(folder: Path) -> str:
    """Train every method on every seed; a Markdown table of scan AUROC, slice AUROC and slice AUPRC."""
    return compare(folder, ShiftedMean(window=12, width=WIDTH, delta=1.0))


def compare(folder: Path, recipe: ShiftedMean) -> str:
    """The same for any recipe."""
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for seed in SEEDS:
        cohort = folder / str(seed) / "cohort"
        seeds = (seed, seed + 1, seed + 2)
        if not (cohort / "cohort.csv").exists():
            make_shifted_mean_cohort(cohort, recipe, scans=SCANS, seeds=seeds)
        for name, row in _bounds(recipe, SCANS[2], seeds[2]).items():
            rows.setdefault(name, []).append(row)
        for name, overrides in METHODS.items():
            rows.setdefault(name, []).append(_train(folder / str(seed), name, cohort, seed, (), overrides))
        ceiling = ("slice_supervised",), {"kernel": recipe.window}
        rows.setdefault("slice labels, supervised", []).append(
            _train(folder / str(seed), "supervised", cohort, seed, *ceiling)
        )
    return _table(rows)


def _train(
    folder: Path, name: str, cohort: Path, seed: int, overlays: tuple[str, ...], overrides: dict[str, Any]
) -> tuple[float, float, float]:
    reports = train_and_evaluate(
        "ct_normal_guidance",
        folder / name.replace(" ", "_").replace(",", ""),
        overlays,
        dataset_dir=cohort,
        encoder="synthetic",
        in_channels=WIDTH,
        class_names="['negative','positive']",
        seed=seed,
        cache_rate=1.0,
        train__trainer__max_epochs=20,
        optimizer__lr=0.01,
        l1_alpha=0.001,
        **overrides,
    )
    slices = reports["slice_metrics"]
    return (reports["metrics"]["auroc"]["value"], *(slices[figure]["value"] for figure in _FIGURES))


def _bounds(recipe: ShiftedMean, n: int, seed: int) -> dict[str, tuple[float, float, float]]:
    """What needs no training: the two centre baselines and the best possible scores."""
    from sklearn.metrics import roc_auc_score

    drawn = recipe.draw(n, seed)
    labels = [drawn.slice_labels[rows].numpy() for rows in drawn.slices()]
    names = [str(index) for index in range(n)]
    report = slice_metrics(drawn.bayes_slice_scores(), labels, names, n=0)
    scan = float(roc_auc_score(drawn.labels, drawn.bayes_scan_log_odds()))
    return {
        "centre of the scan, rank": (np.nan, *(report.centre_rank[figure] for figure in _FIGURES)),
        "centre of the scan, sigma 1": (np.nan, *(report.centre_gaussian[figure] for figure in _FIGURES)),
        "best possible": (scan, report.auroc.value, report.auprc.value),
    }


def _table(rows: dict[str, list[tuple[float, float, float]]]) -> str:
    lines = [
        f"| method | {' | '.join(map(str, SEEDS))} | slice AUROC, mean (sd) |",
        "|---|" + "---|" * (len(SEEDS) + 1),
    ]
    for name, figures in rows.items():
        slices = [figure[1] for figure in figures]
        mean = f"{np.mean(slices):.3f} ({np.std(slices, ddof=1):.3f})"
        lines.append(f"| {name} | {' | '.join(map(_cell, figures))} | {mean} |")
    return "\n".join(lines)


def _cell(figures: Sequence[float]) -> str:
    return " / ".join("-" if np.isnan(figure) else f"{figure:.3f}" for figure in figures)
