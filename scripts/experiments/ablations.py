"""Every ablation that the bundles' docs list, trained on synthetic bags, one seed: that it runs, and what it prints.

Bags are those of ``monai_mil.synthetic``, 100 in all (40 to train, 20 to validate, 40 to test): token maps of 14 x 14
for INSIGHT, vectors with a twentieth of the tiles planted for ASMIL, trees of three levels for HAG-MIL; 200 scans with
four of 64 features shifted in a window for Normal Guidance. "Places" are tiles or slices, told apart within the
positive test bags.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import torch

from experiments.bundles import BUNDLES, append_row, run_here

SPLITS = (0.4, 0.2, 0.4)


@dataclass(frozen=True)
class Setting:
    """What a bundle's ablations are trained on.

    Attributes:
        cohort: writes it into a folder.
        options: keys of the config.
        places: the test bags have labels of their instances, in the order of the network's scores.
    """

    cohort: Callable[[Path], Path]
    options: dict[str, Any]
    places: bool = False


def _tokens(folder: Path) -> Path:
    from monai_mil.synthetic import make_bag_cohort

    sizes: dict[str, Any] = {"width": 38, "bag_size": (6, 12), "grid": (14, 14)}
    return make_bag_cohort(folder, num_bags=100, planted=0.1, fractions=SPLITS, **sizes)


def _tiles(folder: Path) -> Path:
    from monai_mil.synthetic import make_bag_cohort

    return make_bag_cohort(folder, num_bags=100, width=76, planted=0.05, fractions=SPLITS)


def _trees(folder: Path) -> Path:
    from monai_mil.synthetic import make_tree_cohort

    return make_tree_cohort(folder, num_bags=100, width=76, bag_size=(6, 12), planted=0.2, fractions=SPLITS)


def _scans(folder: Path) -> Path:
    from monai_mil.synthetic import ShiftedMean, make_shifted_mean_cohort

    recipe = ShiftedMean(window=8, slices=(20, 40), shifted=4, width=64, delta=1.0)
    return make_shifted_mean_cohort(folder, recipe, scans=(80, 40, 80), seeds=(1, 2, 3))


_SCAN: dict[str, Any] = {"class_names": ["negative", "positive"], "in_channels": 64, "l1_alpha": 0.001}
SETTINGS = {
    "pathology_insight": Setting(_tokens, {"optimizer::lr": 0.001, "train::trainer::max_epochs": 3}, places=True),
    "pathology_asmil": Setting(_tiles, {"optimizer::lr": 0.001, "train::trainer::max_epochs": 20}, places=True),
    "ct_normal_guidance": Setting(
        _scans, {**_SCAN, "batch_size": 16, "optimizer::lr": 0.02, "train::trainer::max_epochs": 20}
    ),
    "pathology_hagmil": Setting(
        _trees,
        {"optimizer::lr": 0.001, "train::trainer::max_epochs": 5, "tile_size": 256},
    ),
}
COLUMNS = ("bundle", "title", "auroc", "places")


def run(folder: Path) -> str:
    """Train what ``folder/results.csv`` lacks; a Markdown table of every bundle."""
    results = folder / "results.csv"
    done = {(row["bundle"], row["title"]): row for row in _read(results)}
    for bundle, setting in SETTINGS.items():
        cohort = folder / bundle / "cohort"
        if not (cohort / "cohort.csv").exists():
            setting.cohort(cohort)
        for number, (title, options) in enumerate(ablations(bundle).items()):
            if (bundle, title) not in done:
                row = _train_and_test(bundle, folder / bundle / str(number), cohort, setting, options)
                done[bundle, title] = {"bundle": bundle, "title": title, **row}
                append_row(results, done[bundle, title], COLUMNS)
                print(f"    {bundle}: {title}: {row}", file=sys.stderr, flush=True)
    lines = ["| bundle | what is changed | AUROC | AUROC of places |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(str(row[name]) for name in COLUMNS)} |" for row in done.values())])


def ablations(bundle: str) -> dict[str, dict[str, str]]:
    """The options of each line of a bundle's table of ablations, by what the line changes."""
    readme = (BUNDLES / bundle / "docs" / "README.md").read_text()
    section = readme.partition("### Ablations")[2].partition("\n#")[0]
    said = {title: shlex.split(options) for title, options in re.findall(r"^\| ([^|`]+) \| `(--[^`]+)`", section, re.M)}
    return {
        title: dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
        for title, words in said.items()
    }


def _train_and_test(
    bundle: str, folder: Path, cohort: Path, setting: Setting, options: dict[str, str]
) -> dict[str, Any]:
    from fire.parser import DefaultParseValue

    shutil.rmtree(folder, ignore_errors=True)
    typed = {key: DefaultParseValue(value) for key, value in options.items()}
    given = {"dataset_dir": cohort, "encoder": "synthetic", **setting.options, **typed}
    run_here(bundle, folder, "train", **given)
    workflow = run_here(bundle, folder, "train", "evaluate", **given)
    reports = {path.stem: json.loads(path.read_text()) for path in (folder / "eval").glob("*.json")}
    places: Any = ""
    if setting.places:
        places = _places(workflow, cohort)
    elif "slice_metrics" in reports:
        places = reports["slice_metrics"]["auroc"]["value"]
    return {"auroc": reports["metrics"]["auroc"]["value"], "places": places}


@torch.no_grad()
def _places(workflow: Any, cohort: Path) -> float:
    """AUROC of the tiles of the positive test bags, their mean."""
    from monai_mil.metrics import instance_auroc
    from monai_mil.networks import instance_scores

    network, dataset = (workflow.parser.get_parsed_content(key) for key in ("network", "validate::dataset"))
    scores, truths = [], []
    for item, case in zip(dataset, dataset.data, strict=True):
        with h5py.File(cohort / "bags" / f"{case['slide_id']}.h5") as file:
            truth = file["instance_labels"][:]
        if truth.any():
            output = network.eval()(item["image"][None].float(), return_dict=True)
            scores.append(instance_scores(output)[0, -1].numpy())
            truths.append(truth)
    return instance_auroc(scores, truths)


def _read(results: Path) -> list[dict[str, str]]:
    if not results.exists():
        return []
    with results.open(newline="") as file:
        return list(csv.DictReader(file))
