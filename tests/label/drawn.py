"""Small slides with a place that a network can learn to find."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monai_mil.slides import write_pyramid

LESION = (512, 256, 1024, 512)
"""x0, y0, x1, y1 of the lesion of a positive slide."""


def draw_slide(path: Path, *, positive: bool, seed: int) -> Path:
    """1024 x 768 pixels of plain tissue, on a positive slide with coarse dark grains in the lesion."""
    rng = np.random.default_rng(seed)
    image = np.full((768, 1024, 3), (200, 120, 170), np.int16)
    image += rng.integers(-6, 7, image.shape, dtype=np.int16)
    if positive:
        x0, y0, x1, y1 = LESION
        grains = rng.random(((y1 - y0) // 8, (x1 - x0) // 8)) < 0.5
        image[y0:y1, x0:x1][np.kron(grains, np.ones((8, 8), bool))] = (70, 40, 120)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, image.clip(0, 255).astype(np.uint8), mpp=0.5)
    return path


def draw_studies(folder: Path, count: int = 8) -> Path:
    """Slides ``neg_<i>`` and ``pos_<i>``, those of odd ``i`` in a sub-folder."""
    for number in range(count):
        name = f"{'pos' if number % 2 else 'neg'}_{number // 2}"
        place = folder / "batch" if number // 2 % 2 else folder
        draw_slide(place / f"{name}.tif", positive=bool(number % 2), seed=number)
    return folder


def asap(name: str, box: tuple[float, float, float, float]) -> str:
    """A rectangle as QuPath's plugin 0.3.1 submits it."""
    x0, y0, x1, y1 = box
    corners = enumerate([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    points = "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in corners)
    return (
        '<?xml version="1.0" encoding="UTF-8" standalone="no"?><ASAP_Annotations>'
        '<Annotations Name="" Description="" X="0" Y="0" W="0" H="0">'
        f'<Annotation Name="{name}" Type="Polygon" PartOfGroup="{name}" Color="#ff0000">'
        f"<Coordinates>{points}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
