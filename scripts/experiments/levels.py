"""How few tiles suffice where only the finest level tells: HAG-MIL against ABMIL on each level, and on tiles by chance.

Synthetic slides whose lesions are lymph follicles but for the chromatin of their nuclei; tiles of 80 pixels at 0.5, 1
and 2 micrometres a pixel. The last rows give ABMIL as many tiles as HAG-MIL looks at, all of the finest one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from experiments.bundles import evaluate, train_and_evaluate
from monai_mil.bags import BagFile
from monai_mil.cohorts import Cohort, read_cohort
from monai_mil.embedding import embed_cohort
from monai_mil.metrics import auroc, bootstrap_ci
from monai_mil.reports.predictions import Predictions, read_predictions
from monai_mil.synthetic import make_slide_cohort

LEVELS = 3
OPENED = (5, 10, 25, 1000)
"""How many tiles HAG-MIL opens at each level but the finest when it is tested; the last opens all."""
SETTINGS: dict[str, dict[str, Any]] = {
    "mil_baselines": {"train__trainer__max_epochs": 80, "optimizer__lr": 1e-3, "optimizer__weight_decay": 1e-2},
    "pathology_hagmil": {
        "k_train": 25,
        "k_eval": 25,
        "hidden_dims": "[128]",
        "instance_channels": 128,
        "attention_dim": 64,
        "network_def__attention_dropout": 0.1,
        "loss_weights__bag": 0.7,
        "loss_weights__instance": 0.3,
        "instance_loss__exclusive": True,
        "optimizer___target_": "torch.optim.AdamW",
        "optimizer__params": "$[{'params': @network.levels[:-1].parameters(), 'lr': 3e-5}, "
        "{'params': @network.levels[-1].parameters()}]",
        "optimizer__lr": 5e-4,
        "optimizer__weight_decay": 1e-2,
        "train__trainer__accumulation_steps": 1,
        "train__trainer__max_epochs": 45,
    },
}
"""Chosen on the validation split among a few runs of one seed. The coarse levels learn slowly: on 120 slides they know
every slide by heart soon after they have found the dense tissue, and from then on look anywhere. Without ``exclusive``
slides were told apart as well, but attention pointed away from the lesions: nothing says which side is which."""


def run(folder: Path, slides: int = 240, side: int = 3072) -> str:
    """Make and embed the cohort, train every network; a Markdown table of the test split, a row a network."""
    place = folder / "cohort"
    if not (place / "cohort.csv").exists():
        splits = (0.5, 0.2, 0.3)
        make_slide_cohort(place, num_slides=slides, seed=8, size=(side, side), kind="follicular", fractions=splits)
    bags = place / "bags"
    embed_cohort(place / "cohort.csv", bags, "texture", tile_size=80, target_mpp=0.5, levels=LEVELS)
    cohort = read_cohort(place / "cohort.csv")
    coarse = np.array([_length(bags, slide.slide_id) for slide in cohort.slides if slide.split == "test"])
    whole = coarse.sum() * sum(4**level for level in range(LEVELS))
    rows: dict[str, tuple[float, Predictions]] = {}
    for level in range(LEVELS):
        tiles = coarse.sum() * 4 ** (LEVELS - 1 - level)
        name = f"gated ABMIL, level {level} ({0.5 * 2**level:g} µm)"
        rows[name] = (tiles / whole, _train("mil_baselines", folder / f"abmil_{level}", place, bags / f"level_{level}"))
    froc = []
    for k, (found, localisation) in _hagmil(folder, place, bags).items():
        opened = "all" if k >= 4 ** (LEVELS - 2) * coarse.max() else str(k)
        rows[f"HAG-MIL, {opened} opened"] = (tiles_seen(coarse, k).sum() / whole, found)
        froc.append(f"{localisation['froc']['score']:.3f} ({opened})")
    for k in OPENED[:-1]:
        chance = folder / "chance" / str(k)
        draw_finest(cohort, bags, chance, k)
        found = _train("mil_baselines", folder / f"chance_{k}", place, chance)
        rows[f"gated ABMIL, as many by chance as HAG-MIL, {k} opened"] = (tiles_seen(coarse, k).sum() / whole, found)
    return f"{_table(rows)}\n\nFROC of HAG-MIL's fused map, by what is opened: {', '.join(froc)}."


def tiles_seen(coarse: ArrayLike, k: int) -> np.ndarray:
    """How many tiles HAG-MIL looks at that opens ``k`` a level, for numbers of coarsest tiles ``[m]``."""
    level = np.asarray(coarse)
    total = level
    for _ in range(LEVELS - 1):
        level = 4 * np.minimum(k, level)
        total = total + level
    return total


def draw_finest(cohort: Cohort, bags: Path, folder: Path, k: int) -> None:
    """Bags of finest tiles by chance, of every slide as many as HAG-MIL looks at that opens ``k`` a level."""
    for index, slide in enumerate(cohort.slides):
        with BagFile(bags / "level_0" / f"{slide.slide_id}.h5") as bag:
            count = min(int(tiles_seen(_length(bags, slide.slide_id), k)), bag.n)
            chosen = np.sort(np.random.default_rng([k, index]).choice(bag.n, count, replace=False))
            BagFile.write(folder / f"{slide.slide_id}.h5", bag.features()[chosen], bag.coords[chosen], bag.info)


def _length(bags: Path, slide_id: str) -> int:
    """Number of a slide's coarsest tiles."""
    with BagFile(bags / f"level_{LEVELS - 1}" / f"{slide_id}.h5") as bag:
        return bag.n


def _hagmil(folder: Path, cohort: Path, bags: Path) -> dict[int, tuple[Predictions, dict[str, Any]]]:
    """Answers of one network for the test split and how well its fused map finds lesions, by tiles opened."""
    options = {"dataset_dir": cohort, "bag_dir": bags, "levels": LEVELS, **SETTINGS["pathology_hagmil"]}
    train_and_evaluate("pathology_hagmil", folder / "hagmil", **options)
    found = {}
    for k in OPENED:
        place = folder / "hagmil" / f"opened_{k}"
        with_k = options | {"ckpt_dir": folder / "hagmil" / "models", "k_eval": k}
        evaluate("pathology_hagmil", place, ("localise",), **with_k)
        localisation = json.loads((place / "localisation.json").read_text())
        found[k] = (read_predictions(place / "predictions.csv"), localisation)
    return found


def _train(bundle: str, folder: Path, cohort: Path, bags: Path, **options: Any) -> Predictions:
    """The network's answers for the test split."""
    train_and_evaluate(bundle, folder, dataset_dir=cohort, bag_dir=bags, **SETTINGS[bundle], **options)
    return read_predictions(folder / "eval" / "predictions.csv")


def _table(rows: dict[str, tuple[float, Predictions]]) -> str:
    lines = [
        "| network | tiles encoded | slide AUROC (95 % interval) | above ABMIL on all finest tiles |",
        "|---|---|---|---|",
    ]
    (_, reference), *_ = rows.values()
    for name, (share, found) in rows.items():
        assert found.slide_ids == reference.slide_ids
        pair = np.stack([found.prob[:, 1], reference.prob[:, 1]], axis=1)
        truth = reference.truth[:, 1].astype(int)
        own = bootstrap_ci(auroc, pair[:, 0], truth, groups=reference.patient_ids)
        more = bootstrap_ci(_lead, pair, truth, groups=reference.patient_ids)
        lead = "" if found is reference else f"{more.value:+.3f} ({more.low:+.3f} to {more.high:+.3f})"
        lines.append(f"| {name} | {share:.0%} | {own.value:.3f} ({own.low:.3f} to {own.high:.3f}) | {lead} |")
    return "\n".join(lines)


def _lead(prob: ArrayLike, label: ArrayLike, weight: np.ndarray | None = None) -> Any:
    """AUROC of the first of two networks ``[n, 2]`` above that of the second, on the same slides."""
    first, second = np.asarray(prob).T
    return auroc(first, label, weight) - auroc(second, label, weight)
