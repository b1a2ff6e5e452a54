"""Every method of ``mil_baselines`` with its authors' recipe, on synthetic slides and on MNIST-bags.

The 60 slides of ``monai-mil demo``, with the encoder ``texture``: 30 to train, 10 to validate, 20 to test.
MNIST-bags as Ilse et al. draw them (target 9, 10 +- 2 digits): 200 to train, 20 to validate, 200 to test, a digit
being 64 features, of a spread of 1 in all, of a LeNet that has learnt to tell digits from 12,000 of MNIST's training
part, and its place the next one of a square. ``DATA`` holds ``mnist.npz``.

Optimiser, rate, schedule, patience and selection are ``--recipe own``, widths ``small``, seed 0; two trainings at a
time, one thread each. One rule stands above all recipes, as they count epochs of cohorts of other sizes: a training has
as many epochs as make 6,000 steps of one bag, 200 of these slides and 30 of MNIST-bags. Where a recipe keeps the epoch
of the best validation AUROC, which is the latest of equals, the training ends when ten in a row have had 1. Seconds are
of the CPU, those of the training alone.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.bundles import BUNDLES, IN_MEMORY, append_row, run_here

METHODS = BUNDLES / "mil_baselines" / "configs" / "methods"
SLIDES = {"num_slides": 60, "fractions": (0.5, 0.2, 0.3)}
MNIST_BAGS = {"train": 200, "val": 20, "test": 200}
DIGITS = 12_000
STEPS = 6_000
STEADY = 10
COLUMNS = ("cohort", "method", "auroc", "low", "high", "epochs", "seconds")


def run(folder: Path, data: Path) -> str:
    """Train what ``folder/results.csv`` lacks; a Markdown table of AUROC on the test bags and of CPU seconds."""
    cohorts = {"slides": _slides(folder / "slides"), "mnist": _mnist_bags(folder / "mnist", data / "mnist.npz")}
    results = folder / "results.csv"
    done = _read(results)
    methods = sorted(path.stem for path in METHODS.glob("*.json"))
    missing = [(name, method) for name in cohorts for method in methods if (name, method) not in done]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        trained = {
            pool.submit(_train_and_test, folder / f"{name}_{method}", cohorts[name], method): (name, method)
            for name, method in missing
        }
        for future in as_completed(trained):
            name, method = trained[future]
            done[name, method] = future.result()
            append_row(results, {"cohort": name, "method": method, **done[name, method]}, COLUMNS)
    return _table(methods, cohorts, done)


def _slides(folder: Path) -> Path:
    from monai_mil.embedding import embed_cohort
    from monai_mil.synthetic import make_slide_cohort

    table = folder / "cohort.csv"
    if not table.exists():
        make_slide_cohort(folder, seed=0, workers=2, **SLIDES)
    embed_cohort(table, folder / "bags", "texture")
    return folder


def _mnist_bags(folder: Path, mnist: Path) -> Path:
    from monai_mil.bags import BagFile, BagInfo
    from monai_mil.cohorts import Cohort, CohortSlide
    from monai_mil.datasets import make_mnist_bags

    if (folder / "cohort.csv").exists():
        return folder
    encode = _digit_encoder(mnist)
    slides = []
    for seed, (split, count) in enumerate(MNIST_BAGS.items()):
        part = "test" if split == "test" else "train"
        for index, bag in enumerate(make_mnist_bags(mnist, split=part, num_bags=count, seed=seed)):
            name, features = f"{split}_{index:03d}", encode(bag["image"].transpose(0, 1)).numpy()
            columns = int(np.ceil(np.sqrt(len(features))))
            coords = 28 * np.stack([np.arange(len(features)) % columns, np.arange(len(features)) // columns], axis=1)
            size = (28 * columns, 28 * columns)
            info = BagInfo(name, encoder="digits", mpp=1.0, tile_size_level0=28.0, level0_size=size)
            BagFile.write(folder / "bags" / f"{name}.h5", features, coords, info)
            slides.append(CohortSlide(slide_id=name, patient_id=name, label=bag["label"], split=split))
    Cohort(folder / "cohort.csv", tuple(slides), ("label",), ("without 9", "with 9")).write(folder / "cohort.csv")
    return folder


def _digit_encoder(mnist: Path) -> Callable[[Tensor], Tensor]:
    """From digits ``[n, 1, 28, 28]`` to features ``[n, 64]`` of a spread of 1; learns anew every time, the same."""
    from torch.nn import functional as F

    from monai_mil.networks.instance_encoder import LeNetEncoder

    with np.load(mnist) as stored:
        digits = torch.from_numpy(stored["train_images"][:DIGITS, None]).float().div(255).sub(0.1307).div(0.3081)
        labels = torch.from_numpy(stored["train_labels"][:DIGITS]).long()
    torch.manual_seed(0)
    encoder = nn.Sequential(LeNetEncoder(), nn.Linear(800, 64))
    classifier = nn.Linear(64, 10)
    optimizer = torch.optim.Adam([*encoder.parameters(), *classifier.parameters()], lr=1e-3)
    for batch in torch.randperm(3 * len(digits)).remainder(len(digits)).split(50):
        optimizer.zero_grad()
        F.cross_entropy(classifier(encoder(digits[batch])), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        spread = encoder.eval()(digits[:1000]).std()
    return torch.no_grad()(lambda images: encoder(images) / spread)


def _train_and_test(folder: Path, cohort: Path, method: str) -> dict[str, Any]:
    """Train anew, then test the epoch that the recipe selects."""
    shutil.rmtree(folder, ignore_errors=True)
    started = time.process_time()
    classes = ["without 9", "with 9"] if cohort.name == "mnist" else ["normal", "tumor"]
    options = {"dataset_dir": cohort, "class_names": classes, **IN_MEMORY}
    own = {"method": method, "recipe": "own", "train::trainer::max_epochs": epochs_of(cohort)}
    workflow = run_here("mil_baselines", folder, "train", before=_stop_when_steady, **own, **options)
    seconds = time.process_time() - started
    epochs = workflow.parser.get_parsed_content("train::trainer").state.epoch
    run_here("mil_baselines", folder, "train", "evaluate", **options)
    auroc = json.loads((folder / "eval" / "metrics.json").read_text())["auroc"]
    row = {"auroc": auroc["value"], "low": auroc["low"], "high": auroc["high"], "epochs": epochs, "seconds": seconds}
    print(f"    {folder.name}: {row}", file=sys.stderr, flush=True)
    return row


def epochs_of(cohort: Path) -> int:
    """As many as make ``STEPS`` steps of one bag."""
    from monai_mil.cohorts import read_cohort

    bags = sum(slide.split == "train" for slide in read_cohort(cohort / "cohort.csv").slides)
    return -(-STEPS // bags)


def _stop_when_steady(workflow: Any) -> None:
    """Where AUROC selects, no epoch is better than one that has 1, and the latest of these is kept."""
    from ignite.engine import Engine, Events

    parsed = workflow.parser.get_parsed_content
    trainer, evaluator = parsed("train::trainer"), parsed("validate::evaluator")
    in_a_row = 0

    @evaluator.on(Events.COMPLETED)
    def stop(engine: Engine) -> None:
        nonlocal in_a_row
        if engine.state.key_metric_name == "val_auroc":
            in_a_row = in_a_row + 1 if engine.state.metrics["val_auroc"] == 1 else 0
            if in_a_row == STEADY:
                trainer.terminate()


def _read(results: Path) -> dict[tuple[str, str], dict[str, Any]]:
    if not results.exists():
        return {}
    with results.open(newline="") as file:
        return {(row["cohort"], row["method"]): row for row in csv.DictReader(file)}


def _table(methods: list[str], cohorts: dict[str, Path], done: dict[tuple[str, str], dict[str, Any]]) -> str:
    lines = ["| method | slides: AUROC | epochs, CPU s | MNIST-bags: AUROC | epochs, CPU s |", "|---|---|---|---|---|"]
    for method in methods:
        rows = [done[name, method] for name in cohorts]
        lines.append(f"| `{method}` | {' | '.join(map(_cells, rows))} |")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> str:
    auroc, low, high, seconds = (float(row[name]) for name in ("auroc", "low", "high", "seconds"))
    return f"{auroc:.3f} ({low:.3f} to {high:.3f}) | {row['epochs']}, {seconds:.0f}"
