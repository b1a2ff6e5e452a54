"""INSIGHT for four labels that do not exclude each other, a fifth of them unknown: synthetic token maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.bundles import train_and_evaluate
from monai_mil.cohorts import read_cohort
from monai_mil.synthetic import make_bag_cohort

LABELS = ("label_0", "label_1", "label_2", "label_3")


def run(folder: Path, bags: int = 240, epochs: int = 8) -> str:
    """Train the bundle once; a Markdown table of the test split, a row a label."""
    cohort = folder / "cohort"
    if not (cohort / "cohort.csv").exists():
        make_bag_cohort(
            cohort, num_bags=bags, width=38, seed=1, bag_size=(20, 60), planted=0.03, grid=(14, 14), multi_label=True
        )
    names = str(list(LABELS))
    options = {"multi_label": True, "label_columns": names, "class_names": names, "label_smoothing": 0.1}
    options |= {"dataset_dir": cohort, "encoder": "synthetic"}
    options |= {"optimizer__lr": 3e-4, "train__trainer__max_epochs": epochs}
    report = train_and_evaluate("pathology_insight", folder / "insight", **options)["metrics"]
    unknown = _unknown(cohort / "cohort.csv")
    head = ["| label | AUROC on the test split (95 % interval) | unknown in training |", "|---|---|---|"]
    rows = [f"| {name} | {_figure(report['classes'][name]['auroc'])} | {unknown[name]:.0%} |" for name in LABELS]
    return "\n".join([*head, *rows, f"| mean | {_figure(report['auroc'])} | |"])


def _unknown(table: Path) -> dict[str, float]:
    """Share of the training split that does not know a label."""
    items = read_cohort(table, labels=LABELS, classes=LABELS).datalist("train", table.parent / "bags")
    known = np.array([item["label"] for item in items])
    return dict(zip(LABELS, np.isnan(known).mean(axis=0).tolist(), strict=True))


def _figure(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
