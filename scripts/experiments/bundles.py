"""Training and evaluating a bundle as a user does, once: what an earlier call finished is kept."""

from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
IN_MEMORY: dict[str, Any] = {
    f"{part}::dataset::{key}": value
    for part in ("train", "validate")
    for key, value in (("_target_", "CacheDataset"), ("progress", False), ("copy_cache", False))
}
"""Options for cohorts whose bags fit into memory."""


def train_and_evaluate(
    bundle: str, folder: Path, overlays: tuple[str, ...] = (), **overrides: Any
) -> dict[str, dict[str, Any]]:
    """``monai.bundle run`` with the train config, then with train and evaluate; its reports by file name.

    Args:
        bundle: name of the bundle.
        folder: of this run; gets models, reports and ``train.log``.
        overlays: further configs of the bundle between train and evaluate.
        overrides: keys of the config, ``train__trainer__max_epochs`` for ``train::trainer::max_epochs``.
    """
    reports = folder / "eval"
    finished = folder / "finished"
    if not finished.exists():
        folder.mkdir(parents=True, exist_ok=True)
        options = {"ckpt_dir": folder / "models", "output_dir": reports, **overrides}
        started = time.monotonic()
        _run(bundle, ("train", *overlays), folder, options)
        _run(bundle, ("train", *overlays, "evaluate"), folder, options)
        print(f"    {folder.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        finished.touch()
    return {path.stem: json.loads(path.read_text()) for path in reports.glob("*.json")}


def evaluate(bundle: str, folder: Path, overlays: tuple[str, ...], **overrides: Any) -> None:
    """``monai.bundle run`` with train, evaluate and further configs, on a trained model; results go to ``folder``.

    Args:
        bundle: name of the bundle.
        folder: of this evaluation.
        overlays: configs of the bundle after evaluate.
        overrides: keys of the config, as for :func:`train_and_evaluate`; ``ckpt_dir`` is where the model is.
    """
    if not (folder / "finished").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _run(bundle, ("train", "evaluate", *overlays), folder, {"output_dir": folder, **overrides})
        (folder / "finished").touch()


def run_here(
    bundle: str, folder: Path, *files: str, before: Callable[[Any], None] = lambda workflow: None, **options: Any
) -> Any:
    """``monai.bundle run`` within this process, where a start takes longer than a training; the workflow that has run.

    Args:
        bundle: name of the bundle.
        folder: of this run; gets models and reports.
        files: configs of the bundle.
        before: is given the workflow when all of it stands and nothing has run.
        options: keys of the configs.
    """
    from monai.bundle import ConfigWorkflow

    logging.disable(logging.INFO)  # of every step, which takes as long as the step
    torch.set_num_threads(1)
    configs = BUNDLES / bundle / "configs"
    workflow = ConfigWorkflow(
        config_file=[str(configs / f"{file}.json") for file in files],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(BUNDLES / bundle),
        ckpt_dir=str(folder / "models"),
        output_dir=str(folder / "eval"),
        **{key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
    )
    workflow.initialize()
    before(workflow)
    workflow.run()
    return workflow


def _run(bundle: str, files: tuple[str, ...], folder: Path, options: dict[str, Any]) -> None:
    configs = [str(BUNDLES / bundle / "configs" / f"{file}.json") for file in files]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs)]
    command += ["--bundle_root", str(BUNDLES / bundle)]
    command += [word for key, value in options.items() for word in (f"--{key.replace('__', '::')}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    log = folder / f"{files[-1]}.log"
    with log.open("w") as file:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}; see {log}\n{log.read_text()[-2000:]}")


def append_row(results: Path, row: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Add a row to a CSV file, with a header where the file is new: what an interrupted call measured is kept."""
    new = not results.exists()
    with results.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerow(row)
