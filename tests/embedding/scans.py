"""Scans made by hand, and an encoder that writes down how many slices it is asked for."""

from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import torch

from monai_mil.scans import ScanFrame


def frame(n: int, *, uids: bool = True, scan_id: str = "scan", step: float = 1.25) -> ScanFrame:
    """An axial frame whose positions are no short decimals."""
    z = -700.1 + step * np.arange(n) + np.random.default_rng(n).uniform(0, 1e-9, n)
    return ScanFrame(
        scan_id=scan_id,
        path=f"/scans/{scan_id}",
        size=(8, 10),
        spacing=(0.7, 0.9),
        orientation=np.eye(3)[:2],
        origins=np.stack([np.full(n, 1 / 3), np.full(n, -np.pi), z], axis=1),
        sop_uids=tuple(f"1.2.826.0.1.3680043.8.498.{index}" if uids else "" for index in range(n)),
        frame_numbers=(1,) * n,
        study_uid="1.2.1",
        series_uid="1.2.2",
        frame_of_reference_uid="1.2.3",
    )


def write_nifti(path: Path, n: int, seed: int = 0) -> Path:
    """A volume of ``n`` slices of 20 x 16 pixels around 0 HU."""
    hu = np.random.default_rng(seed).integers(-900, 900, (16, 20, n)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([0.8, 0.8, 2.5, 1.0])), path)
    return path


class SliceStatistics:
    """Mean and deviation of each channel as features; every call adds the number of its slices to a log."""

    name = "statistics"
    digest = "s0"
    device = torch.device("cpu")

    def __init__(self, log: Path, channels: int = 3, grid: tuple[int, int] | None = None) -> None:
        self.log = log
        self.width = channels if grid else 2 * channels
        self.grid = grid
        self.card = SimpleNamespace(
            channels=channels, reads=("slices",), preset=None, preprocessing=SimpleNamespace(input_size=24)
        )

    def encode(self, slices: torch.Tensor) -> torch.Tensor:
        with self.log.open("a") as log:
            log.write(f"{len(slices)}\n")
        if self.grid:
            return torch.nn.functional.adaptive_avg_pool2d(slices, self.grid).half()
        values = slices.flatten(2)
        return torch.cat([values.mean(dim=2), values.std(dim=2)], dim=1).half()
