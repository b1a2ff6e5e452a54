"""How well a linear probe tells tumour tiles from normal ones by the features of encoders that need no download.

``--data`` names a folder with ``normal/`` and ``tumor/``, tiles of any size named ``tumor_004_X_Y.png`` by their slide.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import LeaveOneGroupOut, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_mil.encoders import get_encoder

ENCODERS = ("texture", "efficientnet_lite0")
FOLDS = 5
SEEDS = range(5)


@dataclass(frozen=True, eq=False)
class Tiles:
    """Pixels uint8 ``[n, 3, s, s]``, whether a tile shows tumour ``[n]``, and the slide of each."""

    pixels: torch.Tensor
    tumor: np.ndarray
    slides: np.ndarray


def run(folder: Path, data: Path) -> str:
    tiles = read_tiles(data)
    lines = [
        f"| encoder | AUROC, {FOLDS} folds of tiles, {len(SEEDS)} times | AUROC, each slide left out | CPU ms a tile |",
        "|---|---|---|---|",
    ]
    lines += [_row(name, tiles) for name in ENCODERS]
    lines += ["", f"{len(tiles.tumor)} tiles, {tiles.tumor.sum()} with tumour, of {len(set(tiles.slides))} slides."]
    return "\n".join(lines)


def read_tiles(data: Path) -> Tiles:
    paths = sorted(data.glob("normal/*.png")) + sorted(data.glob("tumor/*.png"))
    if not paths:
        raise SystemExit(f"no tiles in '{data}'; it needs the folders normal/ and tumor/ with PNG files")
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    return Tiles(
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        np.array([path.parent.name == "tumor" for path in paths]),
        np.array([path.stem.rsplit("_", 2)[0] for path in paths]),
    )


def _row(name: str, tiles: Tiles) -> str:
    encoder = get_encoder(name)
    encoder(tiles.pixels[:8])
    start = time.process_time()
    features = encoder(tiles.pixels).float().numpy()
    milliseconds = 1000 * (time.process_time() - start) / len(features)
    of_tiles = [
        _auroc(features, tiles, StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(features, tiles.tumor))
        for seed in SEEDS
    ]
    of_slides = _auroc(features, tiles, LeaveOneGroupOut().split(features, tiles.tumor, tiles.slides))
    figures = f"{np.mean(of_tiles):.3f} ± {np.std(of_tiles):.3f} | {of_slides:.3f} | {milliseconds:.1f}"
    return f"| `{name}` | {figures} |"


def _auroc(features: np.ndarray, tiles: Tiles, folds) -> float:
    """Of all tiles together, each scored by the probe that did not see it."""
    scores = cross_val_predict(_probe(), features, tiles.tumor, cv=list(folds), method="predict_proba")
    return float(roc_auc_score(tiles.tumor, scores[:, 1]))


def _probe() -> BaseEstimator:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
