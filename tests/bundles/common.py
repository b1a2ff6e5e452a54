"""What the bundles' tests share: which bundles there are, their configs, and a cohort each can be run on."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import torch

from tests import processes
from tests.conftest import ROOT

BUNDLES = ROOT / "bundles"
Run = Callable[..., CompletedProcess[str]]
NAMES = sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/metadata.json"))


def metadata(name: str) -> dict[str, Any]:
    return json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())


def config(name: str, *files: str) -> list[str]:
    return [str(BUNDLES / name / "configs" / f"{file}.json") for file in files]


def network_width(name: str) -> int:
    return metadata(name)["network_data_format"]["inputs"]["image"]["num_channels"]


def network(name: str) -> torch.nn.Module:
    """The shipped network."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(config(name, "inference"))
    net = parser.get_parsed_content("network_def")
    net.load_state_dict(torch.load(BUNDLES / name / "models" / "model.pt", weights_only=True))
    return net.eval()


def export_arguments(name: str, filepath: Path) -> dict[str, Any]:
    """Arguments of ``ckpt_export`` and ``onnx_export`` for the shipped network."""
    return {
        "net_id": "network_def",
        "filepath": str(filepath),
        "ckpt_file": str(BUNDLES / name / "models" / "model.pt"),
        "meta_file": config(name, "metadata")[0],
        "config_file": config(name, "inference"),
    }


def bag_shape(name: str, size: int) -> list[int]:
    """Shape of a batch of one bag: ``[1, d, n]``, with the token grid where the network takes one.

    ``size`` is the number of instances, of a packed bag that of tiles of its coarsest level.
    """
    first, *grid = metadata(name)["network_data_format"]["inputs"]["image"]["spatial_shape"]
    return [1, network_width(name), size * _unit(first), *grid]


def _unit(length: str) -> int:
    """1 where the metadata let a bag have any length, else the number of which its length is a multiple."""
    return 1 if length == "*" else int(length.removesuffix("*n"))


def affordable(name: str, instances: int) -> int:
    """The size of a bag of so many instances, or of one that holds 20 times as many tokens, in more than one chunk."""
    shape = bag_shape(name, 1)
    return max(1, min(instances // shape[2], max(2, instances * 20 // math.prod(shape[3:]))))


@dataclass(frozen=True)
class Example:
    """What a bundle's train, evaluate and inference configs are run on.

    Attributes:
        cohort: writes ``cohort.csv`` and ``bags/`` into a folder, features as wide as the given number.
        classes: names of the cohort's classes.
        case_id: name of the column that names the cases.
        overrides: what else of the configs differs from a user's run, so that three epochs are enough to learn.
        bags: what the bags are that inference must know too.
        bag_folder: where the cohort has a file of every case.
    """

    cohort: Callable[[Path, int], Path]
    classes: tuple[str, str] = ("normal", "tumor")
    case_id: str = "slide_id"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    bags: Mapping[str, Any] = field(default_factory=dict)
    bag_folder: str = "bags"

    def options(self, cohort: Path, folder: Path) -> dict[str, Any]:
        """Keys of the configs for a run that writes into ``folder``."""
        places = {"dataset_dir": cohort, "ckpt_dir": folder / "models", "output_dir": folder / "eval"}
        return {**places, **self.inputs, **self.overrides}

    @property
    def inputs(self) -> dict[str, Any]:
        """Keys of train and inference that say what the bags and classes are."""
        return {"encoder": "synthetic", "class_names": str(list(self.classes)), **self.bags}


def planted_bags(folder: Path, width: int) -> Path:
    from monai_mil.synthetic import make_bag_cohort

    return make_bag_cohort(folder, num_bags=48, width=width, seed=0)


def densely_planted_bags(folder: Path, width: int) -> Path:
    from monai_mil.synthetic import make_bag_cohort

    return make_bag_cohort(folder, num_bags=48, width=width, seed=0, planted=0.3)


def planted_tokens(folder: Path, width: int) -> Path:
    from monai_mil.synthetic import make_bag_cohort

    return make_bag_cohort(folder, num_bags=32, width=width, seed=0, bag_size=(3, 6), planted=0.3, grid=(14, 14))


def planted_token_scans(folder: Path, width: int) -> Path:
    from monai_mil.synthetic import make_token_scan_cohort

    recipe = {"slices": (5, 7), "grid": (14, 14), "shifted": 16, "radius": 2.0}
    return make_token_scan_cohort(folder, scans=(16, 12, 12), width=width, **recipe)


def planted_scans(folder: Path, width: int) -> Path:
    from monai_mil.synthetic import ShiftedMean, make_shifted_mean_cohort

    recipe = ShiftedMean(window=8, slices=(10, 30), shifted=8, width=width, delta=2.0)
    return make_shifted_mean_cohort(folder, recipe, scans=(48, 24, 24), seeds=(1, 2, 3))


def planted_trees(folder: Path, width: int) -> Path:
    from monai_mil.synthetic import make_tree_cohort

    return make_tree_cohort(folder, num_bags=24, width=width, seed=0, bag_size=(4, 9), planted=0.3)


EXAMPLES = {
    "ct_insight": Example(
        planted_token_scans,
        ("negative", "positive"),
        "scan_id",
        {"optimizer::lr": 0.003},
        {"grid": [14, 14], "depth": "any", "lungs": "any"},
    ),
    "ct_normal_guidance": Example(
        planted_scans, ("negative", "positive"), "scan_id", {"batch_size": 4, "optimizer::lr": 0.05}
    ),
    "mil_baselines": Example(planted_bags),
    "pathology_asmil": Example(densely_planted_bags, overrides={"optimizer::lr": 0.003}),
    "pathology_hagmil": Example(
        planted_trees,
        overrides={"optimizer::lr": 0.003, "train::trainer::accumulation_steps": 1},
        bags={"tile_size": 256},
        bag_folder="bags/level_2",
    ),
    "pathology_insight": Example(planted_tokens, overrides={"optimizer::lr": 0.001}),
}


def command(name: str, files: list[str], **overrides) -> list[str]:
    """What follows ``python`` in ``python -m monai.bundle run`` as a user types it."""
    words = ["-m", "monai.bundle", "run", "--config_file", str(config(name, *files))]
    words += ["--bundle_root", str(BUNDLES / name)]
    return words + [word for key, value in overrides.items() for word in (f"--{key}", str(value))]


def run_bundle(
    name: str, files: list[str], *, cwd: Path, run: Run = processes.run, check: bool = True, **overrides
) -> CompletedProcess[str]:
    """The command of these configs, run by one of the ways of :mod:`tests.processes`."""
    done = run(*command(name, files, **overrides), folder=cwd)
    if check and done.returncode:
        words = " ".join(map(str, done.args))
        raise AssertionError(f"{words} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-6000:]}")
    return done


def workflow(name: str, files: list[str], **options: Any) -> Any:
    """The bundle's workflow, set up in this process with options as its command line takes them."""
    from fire.parser import DefaultParseValue
    from monai.bundle import ConfigWorkflow

    kind = "inference" if files == ["inference"] else "train"
    meta = str(BUNDLES / name / "configs" / "metadata.json")
    typed = {"bundle_root": BUNDLES / name} | options
    given = {key: DefaultParseValue(str(value)) for key, value in typed.items()}
    made = ConfigWorkflow(config(name, *files), meta, logging_file=False, workflow_type=kind, **given)
    made.initialize()
    return made


def train(name: str, folder: Path, cohort: Path, *, epochs: int, files: tuple[str, ...] = ("train",), **options):
    """Run the train config, with further ones or other keys, on the bundle's example."""
    overrides = EXAMPLES[name].options(cohort, folder) | {"train::trainer::max_epochs": epochs} | options
    return run_bundle(name, list(files), cwd=folder, **overrides)


def losses(log: str) -> list[float]:
    return [float(value) for value in re.findall(r"train_loss: ([\d.]+)", log)]


def aurocs(log: str, split: str = "val") -> list[float]:
    return [float(value) for value in re.findall(rf"Metrics -- .*\b{split}_auroc: ([\d.]+)", log)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "models" / "model.pt", weights_only=True)


def checkpoint(folder: Path, epoch: int) -> dict[str, Any]:
    """The states of all objects in the checkpoint of an epoch."""
    path = folder / "models" / "checkpoints" / f"checkpoint_epoch={epoch}.pt"
    return torch.load(path, weights_only=True)["objects"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
