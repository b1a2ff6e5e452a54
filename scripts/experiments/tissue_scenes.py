"""How much of the tissue is found, and how much of what is found is tissue, on drawn slides on which it is hard."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from monai_mil.slides import open_slide, segment_tissue, write_pyramid
from monai_mil.synthetic.tissue_scenes import MPP, SCENES

SEEDS = (0, 1, 2)


def run(folder: Path) -> str:
    """Draw every scene as a JPEG pyramid and find its tissue; a Markdown table of the worst of the seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["| scene | tissue | found | recall | precision |", "|---|---|---|---|---|"]
    for name, scene in SCENES.items():
        figures = []
        for seed in SEEDS:
            image, truth = scene.paint(seed=seed)
            path = folder / f"{name.replace(' ', '_')}_{seed}.tif"
            write_pyramid(path, image, mpp=MPP)
            with open_slide(path) as slide:
                figures.append(_figures(segment_tissue(slide).mask, truth))
            path.unlink()
        tissue, found = np.mean([figure[:2] for figure in figures], axis=0)
        recall, precision = np.min([figure[2:] for figure in figures], axis=0)
        lines.append(f"| {name} | {tissue:.1%} | {found:.1%} | {_shown(recall)} | {_shown(precision)} |")
    note = f"Recall and precision are the worst of {len(SEEDS)} seeds; one of nothing is not given."
    return "\n".join([*lines, "", note])


def _figures(found: np.ndarray, truth: np.ndarray) -> tuple[float, float, float, float]:
    """Shares of tissue and of what was found, recall and precision, of pixels of the mask; NaN of nothing."""
    height, width = found.shape
    tissue = cv2.resize(truth.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) >= 0.5
    both = np.count_nonzero(found & tissue)
    recall, precision = (both / np.count_nonzero(of) if of.any() else np.nan for of in (tissue, found))
    return float(tissue.mean()), float(found.mean()), recall, precision


def _shown(figure: float) -> str:
    return "" if np.isnan(figure) else f"{figure:.3f}"
