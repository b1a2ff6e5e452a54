"""Nuclei of synthetic slides: the kinds of cells, how one nucleus looks, and stamping many of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np


@dataclass(frozen=True)
class CellType:
    """How nuclei of one kind look and how densely they lie; lengths in micrometres.

    ``grain`` is the contrast of clumps too fine for 2 micrometres a pixel, where the nucleus is as dark as without.
    """

    spacing: float
    radius: float
    size_spread: float
    elongation: float
    darkness: float
    coarseness: float
    grain: float = 0.0


STROMA = CellType(spacing=15.0, radius=2.6, size_spread=0.15, elongation=2.2, darkness=0.70, coarseness=0.10)
PARENCHYMA = CellType(spacing=13.0, radius=3.2, size_spread=0.10, elongation=1.15, darkness=0.58, coarseness=0.12)
LYMPHOCYTE = CellType(spacing=6.6, radius=2.4, size_spread=0.06, elongation=1.05, darkness=0.86, coarseness=0.08)
TUMOUR = CellType(spacing=11.5, radius=4.7, size_spread=0.28, elongation=1.35, darkness=0.74, coarseness=0.35)
CLUMPED = replace(LYMPHOCYTE, darkness=0.87, grain=0.7)  # darker by the light that gaps between clumps let through


def draw_nucleus(rng: np.random.Generator, kind: CellType, mpp: float) -> np.ndarray:
    """One nucleus as concentrations of haematoxylin ``[s, s]``: irregular outline, chromatin clumps, darker rim."""
    radius = kind.radius * np.exp(rng.normal(0, kind.size_spread)) / mpp
    stretch = np.sqrt(kind.elongation * np.exp(rng.normal(0, 0.08)))
    half = int(np.ceil(radius * stretch * 1.3)) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    turn = rng.uniform(0, np.pi)
    along, across = (x * np.cos(turn) + y * np.sin(turn)) / stretch, (y * np.cos(turn) - x * np.sin(turn)) * stretch
    angle = np.arctan2(across, along)
    outline = 1 + sum(
        kind.coarseness * rng.uniform(0, 0.35) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 5)
    )
    depth = np.hypot(along, across) / (radius * outline)
    clumps = cv2.GaussianBlur(rng.standard_normal(x.shape).astype(np.float32), (0, 0), max(0.6, 0.9 / mpp))
    chromatin = 1 + kind.coarseness * clumps / clumps.std() * 0.5 + 0.15 * np.exp(-(((depth - 0.9) / 0.12) ** 2))
    cover = np.clip((1 - depth) * radius / 1.2 + 0.5, 0, 1)
    if kind.grain:
        chromatin = chromatin * _grain(rng, cover, kind.grain, mpp)
    return kind.darkness * np.exp(rng.normal(0, 0.08)) * chromatin * cover


def _grain(rng: np.random.Generator, cover: np.ndarray, contrast: float, mpp: float) -> np.ndarray:
    """Clumps and gaps of about a micrometre, as a factor that leaves the nucleus its mean."""
    noise = rng.standard_normal(cover.shape).astype(np.float32)
    fine, coarse = (cv2.GaussianBlur(noise, (0, 0), sigma / mpp) for sigma in (0.15, 0.3))
    clumps = np.tanh(2 * (fine - coarse) / ((fine - coarse).std() + 1e-6))
    clumps -= (clumps * cover).sum() / cover.sum()
    return 1 + contrast * clumps


def stamp_nuclei(canvas: np.ndarray, nuclei: list[tuple[np.ndarray, np.ndarray, list[np.ndarray]]], top: int) -> None:
    """Draw the nuclei that touch the rows of ``canvas`` from ``top``; where two overlap the darker one is seen.

    Args:
        canvas: concentrations, uint8 ``[rows, w]``.
        nuclei: of every cell type the positions ``[m, 2]`` sorted by y, the stamp of each ``[m]`` and the stamps.
        top: the slide's row at which the canvas begins.
    """
    height, width = canvas.shape
    for position, chosen, stamps in nuclei:
        reach = max(len(stamp) for stamp in stamps) // 2 + 1
        first, last = np.searchsorted(position[:, 1], [top - reach, top + height + reach])
        for (x, y), index in zip(position[first:last].tolist(), chosen[first:last].tolist(), strict=True):
            stamp = stamps[index]
            half = len(stamp) // 2
            x0, y0 = x - half, y - top - half
            left, up = max(x0, 0), max(y0, 0)
            right, down = min(x0 + len(stamp), width), min(y0 + len(stamp), height)
            if left < right and up < down:
                target = canvas[up:down, left:right]
                np.maximum(target, stamp[up - y0 : down - y0, left - x0 : right - x0], out=target)
