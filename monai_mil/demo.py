"""The main job on a synthetic cohort, step by step and with the commands a user would type."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from monai_mil import __version__
from monai_mil.errors import MonaiMILError

NUM_SLIDES = 60
BUNDLE = "mil_baselines"


def run_demo(folder: Path, *, seed: int = 0) -> None:
    """Slides, bags, a model, test metrics, heatmaps and a report, all under ``folder``; finished steps are kept.

    Args:
        folder: where everything is written.
        seed: of the slides and of the training.

    Raises:
        MonaiMILError: the folder holds another demo, or a step failed.
    """
    console = Console(highlight=False)
    folder = folder.resolve()
    _claim(folder, seed)
    start = time.perf_counter()

    _step(console, f"1. {NUM_SLIDES} synthetic slides, half of them with planted tumour")
    cohort = _make_slides(folder, seed)
    _step(console, "2. slides to bags of features", f"monai-mil embed {cohort} --out {folder / 'bags'}")
    _embed(cohort, folder / "bags")

    test = folder / "test"
    _step(console, "3. train gated attention-based MIL")
    _monai_mil(console, ["train", BUNDLE, folder, "--out", folder, "--set", f"seed={seed}", "--resume"])
    _step(console, "4. evaluate on the test slides")
    _monai_mil(console, ["evaluate", BUNDLE, folder, "--model", folder, "--out", test])
    _step(console, "5. predict from the slides themselves: tiles, features, prediction, heatmap and report in one go")
    predicted: list[str | Path] = [cohort, "--raw", "--split", "test", "--model", folder, "--out", test]
    _monai_mil(console, ["predict", BUNDLE, *predicted])
    _tell_figures(console, folder)
    console.print(f"\nDone in {time.perf_counter() - start:.0f} s. Look at")
    for what, place in (
        ("the report", test / "report.html"),
        ("predictions", test / "predictions.csv"),
        ("heatmaps", test / "heatmaps"),
        ("the model", folder / "models" / "model.pt"),
    ):
        console.print(f"  {what:<12} {place}", soft_wrap=True)


def _claim(folder: Path, seed: int) -> None:
    """Note in ``folder`` whose demo it holds; refuse to mix two."""
    mark, ours = folder / "demo.json", {"seed": seed, "num_slides": NUM_SLIDES, "version": __version__}
    if mark.exists() and json.loads(mark.read_text()) != ours:
        raise MonaiMILError(f"'{folder}' holds another demo ({mark.read_text().strip()}); choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(ours) + "\n")


def _step(console: Console, title: str, command: str = "") -> None:
    console.print(f"\n[bold]{title}[/]", soft_wrap=True)
    if command:
        console.print(f"  [dim]{command}[/]", soft_wrap=True)


def _make_slides(folder: Path, seed: int) -> Path:
    from monai_mil.synthetic import make_slide_cohort

    cohort = folder / "cohort.csv"
    if not cohort.exists():
        make_slide_cohort(folder, num_slides=NUM_SLIDES, seed=seed, workers=2)
    return cohort


def _embed(cohort: Path, bags: Path) -> None:
    from monai_mil.embedding import embed_cohort

    # `efficientnet_lite0` takes 177 CPU seconds, not 15, and points at painted tumour worse: tile AUROC 0.87, not 0.98.
    failed = embed_cohort(cohort, bags, "texture").failed
    if failed:
        raise MonaiMILError(f"{len(failed)} slides of the demo were not embedded; the first: {failed[0].error}")


def _monai_mil(console: Console, words: Sequence[str | Path]) -> None:
    """One of our own commands in a process of its own, its output in ``logs/`` of the last folder that it names."""
    arguments = [str(word) for word in words]
    console.print(f"  [dim]monai-mil {escape(shlex.join(arguments))}[/]", soft_wrap=True)
    log = Path(arguments[arguments.index("--out") + 1]) / "logs" / f"{arguments[0]}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file, console.status(f"running, log in {log}"):
        command = [sys.executable, "-m", "monai_mil.cli", *arguments]
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise MonaiMILError(f"the step ended with code {code}; the end of '{log}':\n{tail}")


def _tell_figures(console: Console, folder: Path) -> None:
    """On the screen how well slides and tiles were told apart."""
    import csv

    import numpy as np

    from monai_mil.heatmaps import Heatmap
    from monai_mil.metrics import auroc, bootstrap_ci, instance_auroc
    from monai_mil.synthetic import tile_truth

    test = folder / "test"
    with (test / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    prob = np.array([[float(row["prob_normal"]), float(row["prob_tumor"])] for row in rows])
    label = np.array([int(row["label"] == "tumor") for row in rows])
    interval = bootstrap_ci(auroc, prob, label, groups=[row["patient_id"] for row in rows])
    console.print(f"  slides: AUROC {interval.value:.3f} (95 % interval {interval.low:.3f} to {interval.high:.3f})")

    scores, truths = [], []
    for row in rows:
        if row["label"] == "tumor":
            heatmap = Heatmap.load(test / "heatmaps" / f"{row['slide_id']}.h5")
            mask = folder / "masks" / f"{row['slide_id']}.npz"
            scores.append(heatmap.scores)
            truths.append(tile_truth(mask, heatmap.coords, heatmap.frame.tile_size_level0) >= 0.5)
    console.print(f"  tiles:  AUROC {instance_auroc(scores, truths):.3f} of the attention, mean of the tumour slides")
