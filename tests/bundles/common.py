"""What the bundles' tests share: which bundles there are, their configs, and a cohort each can be run on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

BUNDLES = ROOT / "bundles"
NAMES = sorted(path.parents[1].name for path in BUNDLES.glob("*/configs/metadata.json"))


def metadata(name: str) -> dict[str, Any]:
    return json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())


def config(name: str, *files: str) -> list[str]:
    return [str(BUNDLES / name / "configs" / f"{file}.json") for file in files]


def network_width(name: str) -> int:
    return metadata(name)["network_data_format"]["inputs"]["image"]["num_channels"]


def make_feature_cohort(folder: Path, name: str) -> Path:
    from monai_mil.bags import make_bag_cohort

    return make_bag_cohort(folder, num_bags=48, width=network_width(name), seed=0)


# How to make the cohort that a bundle's train, evaluate and inference configs run on.
COHORTS: dict[str, Callable[[Path, str], Path]] = {"mil_baselines": make_feature_cohort}


def run_bundle(
    name: str, files: list[str], *, cwd: Path, processes: int = 0, check: bool = True, timeout: int = 300, **overrides
) -> subprocess.CompletedProcess[str]:
    """``python -m monai.bundle run`` as a user types it, or under torchrun with ``processes`` processes."""
    command = [sys.executable, "-m", "monai.bundle", "run"]
    if processes:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc_per_node={processes}"]
        command = [sys.executable, *launcher, "-m", "monai.bundle", "run"]
    command += ["--config_file", str(config(name, *files)), "--bundle_root", str(BUNDLES / name)]
    for key, value in overrides.items():
        command += [f"--{key}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=environment)
    if check and done.returncode:
        raise AssertionError(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
        )
    return done
