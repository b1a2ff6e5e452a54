"""Which map finds lesions of which size: INSIGHT's own, Grad-CAM of the same network, and the attention of ABMIL.

Synthetic slides with one lesion of one of three sizes each. Every map is thresholded in the same two ways: by Otsu over
the slide, and at the share of the slide's highest score that gave the best mean Dice on the validation split.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from experiments.bundles import evaluate, train_and_evaluate
from monai_mil.embedding import embed_cohort
from monai_mil.encoders import get_encoder
from monai_mil.metrics import paired_permutation_test
from monai_mil.synthetic import make_slide_cohort
from monai_mil.synthetic.slide_cohort import LESION_RADII

BOUNDS = (120_000, 800_000)
SIZES = ("small", "moderate", "large")
METHODS = {
    "INSIGHT": ("pathology_insight", ("localise",)),
    "Grad-CAM of INSIGHT": ("pathology_insight", ("localise", "grad_cam")),
    "attention of gated ABMIL": ("mil_baselines", ("localise",)),
}


def run(folder: Path, slides: int = 240, epochs: int = 12, workers: int = 2) -> str:
    """Make the cohort, train both networks, compare the maps; Markdown tables."""
    cohort = folder / "cohort"
    if not (cohort / "cohort.csv").exists():
        make_slide_cohort(cohort, num_slides=slides, seed=3, size=(3072, 3072), lesions=LESION_RADII, workers=workers)
    embed_cohort(cohort / "cohort.csv", cohort / "tokens", get_encoder("texture", spatial=True))
    embed_cohort(cohort / "cohort.csv", cohort / "vectors", "texture")
    training = {"optimizer__lr": 3e-4, "train__trainer__max_epochs": epochs}
    options = {
        "pathology_insight": {"bag_dir": cohort / "tokens", **training},
        "mil_baselines": {"bag_dir": cohort / "vectors"},
    }
    slide = {}
    for bundle, own in options.items():
        own |= {"dataset_dir": cohort}
        slide[bundle] = train_and_evaluate(bundle, folder / bundle, **own)["metrics"]["auroc"]
    found = {name: _localise(folder, name, options[bundle]) for name, (bundle, _) in METHODS.items()}
    aurocs = {name: slide[bundle] for name, (bundle, _) in METHODS.items()}
    return _slide_table(found, aurocs) + "\n\n" + _lesion_table(found)


def _localise(folder: Path, name: str, options: dict[str, Any]) -> dict[str, Path]:
    """Folders of the test split's Dice by Otsu's and by the chosen threshold."""
    bundle, overlays = METHODS[name]
    places = {rule: folder / "dice" / name.replace(" ", "_") / rule for rule in ("otsu", "choose", "chosen")}
    common = {**options, "ckpt_dir": folder / bundle / "models", "dice_saver__size_bounds": list(BOUNDS)}
    evaluate(bundle, places["otsu"], overlays, **common)
    evaluate(bundle, places["choose"], overlays, split="val", dice_threshold="best", **common)
    chosen = places["choose"] / "dice.json"
    evaluate(bundle, places["chosen"], overlays, dice_threshold=chosen, **common)
    return places


def _slide_table(found: dict[str, dict[str, Path]], aurocs: dict[str, dict[str, float]]) -> str:
    lines = [
        "| map | AUROC of the slides | Dice, Otsu | Dice, threshold from validation | of all pixels together |",
        "|---|---|---|---|---|",
    ]
    for name, places in found.items():
        otsu, chosen = (_report(places[rule])["slides"] for rule in ("otsu", "chosen"))
        cells = (aurocs[name], otsu["mean"], chosen["mean"], chosen["pooled"])
        lines.append(f"| {name} | {' | '.join(map(_figure, cells))} |")
    return "\n".join(lines)


def _lesion_table(found: dict[str, dict[str, Path]]) -> str:
    """Dice of single lesions by size, and how likely a lead of INSIGHT is chance."""
    first = _lesions(found["INSIGHT"]["chosen"])
    counts = [sum(size == wanted for size, _ in first.values()) for wanted in SIZES]
    heads = [f"{size} ({count})" for size, count in zip(SIZES, counts, strict=True)]
    lines = [f"| lesions, threshold from validation | {' | '.join(heads)} |", "|---|---|---|---|"]
    for name, places in found.items():
        report, own = _report(places["chosen"])["lesions"], _lesions(places["chosen"])
        cells = []
        for size in SIZES:
            cell = _figure(report[size]["mean"])
            if name != "INSIGHT":
                pairs = [(dice, own[lesion][1]) for lesion, (kind, dice) in first.items() if kind == size]
                cell += f", p = {paired_permutation_test(*zip(*pairs, strict=True)):.4f}"
            cells.append(cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _lesions(folder: Path) -> dict[tuple[str, str], tuple[str, float]]:
    """Size and Dice of every lesion."""
    with (folder / "dice_lesions.csv").open(newline="") as file:
        return {(row["slide_id"], row["lesion"]): (row["size"], float(row["dice"])) for row in csv.DictReader(file)}


def _report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "dice.json").read_text())


def _figure(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
