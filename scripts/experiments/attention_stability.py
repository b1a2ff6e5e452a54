"""Does the anchor hold attention still, and at what price? ASMIL with and without it, five seeds, the same settings.

Synthetic slides with one lesion of one of two sizes each, features of the encoder ``texture``. Arms of one seed begin
with the same weights and see the bags in the same order. Writes ``attention_stability.png``, the mean curves of the
arms, and their numbers, one file an arm, beside the table.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bundles import evaluate, train_and_evaluate
from monai_mil.embedding import embed_cohort
from monai_mil.files import write_json
from monai_mil.metrics import EpochStability, Interval, auroc, bootstrap_ci
from monai_mil.savers import draw_stability
from monai_mil.synthetic import make_slide_cohort

SEEDS = (0, 1, 2, 3, 4)
ARMS = {"without anchor": 0.0, "anchor, beta 0.1": 0.1, "anchor, beta 1": 1.0}
LESIONS = {"small": 100.0, "moderate": 160.0}
TRAINING = {"optimizer__lr": 0.001}


def run(folder: Path, slides: int = 240) -> str:
    """Make the cohort, train every arm with every seed; a Markdown table of the test split."""
    cohort = folder / "cohort"
    if not (cohort / "cohort.csv").exists():
        splits = {"fractions": (0.4, 0.2, 0.4), "lesions": LESIONS}
        make_slide_cohort(cohort, num_slides=slides, seed=5, size=(3072, 3072), workers=2, **splits)
    embed_cohort(cohort / "cohort.csv", cohort / "bags", "texture")
    runs = {name: [_train(folder, name, seed, cohort) for seed in SEEDS] for name in ARMS}
    curves = {name: _mean_curve([each["attention_stability"]["epochs"] for each in arm]) for name, arm in runs.items()}
    draw_stability(curves, folder / "attention_stability.png")
    for name, curve in curves.items():
        write_json({"epochs": [vars(epoch) for epoch in curve]}, folder / f"{_plain(name)}.json")
    return _table(runs, curves)


def _train(folder: Path, name: str, seed: int, cohort: Path) -> dict[str, Any]:
    """Reports of one run by file name, with its test predictions."""
    place = folder / _plain(name) / str(seed)
    options = {"dataset_dir": cohort, "seed": seed, "anchor_beta": ARMS[name], **TRAINING}
    reports = train_and_evaluate("pathology_asmil", place, **options)
    evaluate("pathology_asmil", place / "localised", ("localise",), ckpt_dir=place / "models", **options)
    reports["localisation"] = json.loads((place / "localised" / "localisation.json").read_text())
    with (place / "eval" / "predictions.csv").open(newline="") as file:
        return {**reports, "predictions": list(csv.DictReader(file))}


def _plain(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


def _mean_curve(runs: Sequence[Sequence[dict[str, Any]]]) -> list[EpochStability]:
    """Mean of the runs, epoch by epoch."""
    curve = []
    for epochs in zip(*runs, strict=True):
        figures = {key: float(np.mean([np.nan if e[key] is None else e[key] for e in epochs])) for key in epochs[0]}
        curve.append(EpochStability(**figures | {key: epochs[0][key] for key in ("epoch", "cases")}))
    return curve


def _table(runs: dict[str, list[dict[str, Any]]], curves: dict[str, list[EpochStability]]) -> str:
    lines = [
        "| | divergence between epochs | effective tiles, last epoch | AUROC | less the AUROC without anchor | Dice |",
        "|---|---|---|---|---|---|",
    ]
    plain = runs["without anchor"]
    for name, arm in runs.items():
        divergence = np.nanmean([epoch.jsd for epoch in curves[name]])
        aurocs = [each["metrics"]["auroc"]["value"] for each in arm]
        dice = [each["localisation"]["dice"]["value"] for each in arm]
        lead = "" if arm is plain else _signed(_paired(arm, plain))
        cells = [name, f"{divergence:.1e}", f"{curves[name][-1].effective_tiles:.1f}", _spread(aurocs), lead]
        lines.append(f"| {' | '.join([*cells, _spread(dice)])} |")
    note = (
        f"{len(plain[0]['predictions'])} test slides; mean ± standard deviation of {len(SEEDS)} seeds. The difference "
        "is the mean of the seeds with its 95 % interval, patients drawn again, the same for both arms."
    )
    return "\n".join([*lines, "", note])


def _paired(arm: Sequence[dict[str, Any]], plain: Sequence[dict[str, Any]]) -> Interval:
    """Mean over seeds of the difference in AUROC, patients resampled."""
    table = plain[0]["predictions"]
    label = np.array([int(row["label"] == "tumor") for row in table])
    prob = np.array([[float(row["prob_tumor"]) for row in each["predictions"]] for each in (*arm, *plain)]).T

    def lead(prob: Any, label: Any, weight: Any = None) -> Any:
        values = [auroc(column, label, weight) for column in np.asarray(prob).T]
        return np.mean(values[: len(arm)], axis=0) - np.mean(values[len(arm) :], axis=0)

    return bootstrap_ci(lead, prob, label, groups=[row["patient_id"] for row in table])


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
