"""Pictures for the eye: a slide with the outline of its tissue and its tiles, and all of a cohort on one page."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path
from urllib.parse import quote

import numpy as np

from monai_mil.files import replacing
from monai_mil.slides import Slide, TileGrid, TissueMask

SIDE = 1024
"""Longer side of a picture in pixels."""
_OUTLINE, _TILE = (0, 160, 60), (40, 90, 220)
_STYLE = (
    "body{font-family:sans-serif;margin:1.5em}main{display:grid;gap:1em;"
    "grid-template-columns:repeat(auto-fill,minmax(260px,1fr))}figure{margin:0}"
    "img{width:100%;height:240px;object-fit:contain;background:#eee}figcaption{overflow-wrap:anywhere}"
)


def write_picture(path: Path, name: str, slide: Slide, tissue: TissueMask, grid: TileGrid) -> None:
    """Write a JPEG of the slide with the outline of its tissue (green) and of its tiles (blue).

    Name, share of tissue and number of tiles stand in the JPEG's comment, for ``write_contact_sheet``.

    Args:
        path: the JPEG.
        name: of the slide.
        slide: the open slide.
        tissue: its tissue.
        grid: the tiles kept.
    """
    from PIL import Image

    scale = min(1.0, SIDE / max(slide.size))
    size = (max(1, round(slide.size[0] * scale)), max(1, round(slide.size[1] * scale)))
    picture = _outlined(slide.read_scaled(size), tissue, grid.coords * scale, grid.tile_size_level0 * scale)
    facts = json.dumps({"name": name, "tissue": tissue.fraction, "tiles": len(grid)})
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=85, comment=facts.encode())
    with replacing(path) as partial:
        partial.write_bytes(content.getvalue())


def _outlined(picture: np.ndarray, tissue: TissueMask, corners: np.ndarray, side: float) -> np.ndarray:
    """The picture ``[h, w, 3]`` with tiles of ``side`` pixels at ``corners`` ``[n, 2]`` and the mask's outline."""
    import cv2

    picture = np.ascontiguousarray(picture)
    for x, y in corners:
        ends = (round(x), round(y)), (round(x + side), round(y + side))
        cv2.rectangle(picture, *ends, _TILE, 1)
    mask = cv2.resize(tissue.mask.view(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture, outlines, -1, _OUTLINE, 2)


def write_contact_sheet(folder: Path) -> Path:
    """Write ``index.html`` of the pictures in a folder, those of earlier runs too, by name.

    Returns:
        The page; every picture on it leads to itself in full size.
    """
    figures = [_figure(path) for path in sorted(folder.glob("*.jpg")) if not path.name.startswith(".")]
    page = (
        '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Tissue and tiles</title>'
        f"<style>{_STYLE}</style><h1>Tissue and tiles of {len(figures)} slides</h1>"
        f"<p>Green: outline of the tissue. Blue: tiles.</p><main>{''.join(figures)}</main></html>\n"
    )
    with replacing(folder / "index.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return folder / "index.html"


def _figure(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as picture:
        facts = json.loads(picture.info["comment"])
    place, name = quote(path.name), html.escape(facts["name"])
    return (
        f'<figure><a href="{place}"><img src="{place}" alt="{name}" loading="lazy"></a>'
        f"<figcaption><b>{name}</b><br>{facts['tissue']:.1%} tissue, {facts['tiles']} tiles</figcaption></figure>"
    )
