"""Synthetic cohorts, seeded: H&E-like slides with planted tumour and its masks, and feature bags."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from monai_mil.bags.cohort import Cohort, CohortSlide, split_cohort
from monai_mil.bags.file import BagFile
from monai_mil.bags.info import BagInfo
from monai_mil.files import replacing

_SLIDE_CLASSES = ("normal", "tumor")


def make_slide_cohort(
    folder: str | os.PathLike[str],
    *,
    num_slides: int = 60,
    seed: int = 0,
    size: tuple[int, int] = (4096, 4096),
    mpp: float = 0.5,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    workers: int = 1,
) -> Path:
    """Write pyramidal H&E-like slides, half of them with planted tumour, their masks and the cohort table.

    Tumour nuclei are crowded, larger, darker and of many shapes; lymph follicles in both classes are as blue as
    tumour, so that colour alone does not tell. Lesions differ much in size. Some patients have two slides.

    Args:
        folder: gets ``slides/<slide_id>.tif``, ``masks/<slide_id>.npz`` (see ``tile_truth``) and ``cohort.csv``.
        num_slides: how many slides.
        seed: of everything; the same seed gives the same pixels.
        size: width and height of level 0 in pixels.
        mpp: micrometres per pixel.
        fractions: shares of train, val and test.
        workers: processes that paint at the same time.

    Returns:
        Path of ``cohort.csv``: slide_id, patient_id, path, split and label (``normal`` or ``tumor``).
    """
    folder = Path(folder)
    paint = partial(_write_slide, folder, seed=seed, size=size, mpp=mpp)
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(paint, range(num_slides)))
    else:
        for index in range(num_slides):
            paint(index)
    slides = tuple(
        CohortSlide(
            slide_id=_slide_id(index),
            patient_id=f"patient_{_patient(index):03d}",
            path=folder / "slides" / f"{_slide_id(index)}.tif",
            label=index % 2,
        )
        for index in range(num_slides)
    )
    cohort = Cohort(folder / "cohort.csv", slides, ("label",), _SLIDE_CLASSES)
    return split_cohort(cohort, fractions, seed).write(folder / "cohort.csv")


def tile_truth(mask: str | os.PathLike[str], coords: np.ndarray, tile_size_level0: float) -> np.ndarray:
    """Share of every tile that is tumour, from a mask ``make_slide_cohort`` wrote.

    Args:
        mask: ``masks/<slide_id>.npz`` with ``tumour`` (bool ``[h, w]``) and ``downsample`` (level-0 pixels per pixel).
        coords: level-0 x and y of the tiles' upper-left corners, ``[n, 2]``.
        tile_size_level0: edge of a tile in level-0 pixels.

    Returns:
        float32 ``[n]``, 0 to 1.
    """
    with np.load(mask) as stored:
        tumour, downsample = stored["tumour"], float(stored["downsample"])
    total = np.pad(tumour.astype(np.int64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    height, width = tumour.shape
    left, top = np.rint(coords / downsample).astype(int).T
    right, bottom = np.rint((coords + tile_size_level0) / downsample).astype(int).T
    area = np.maximum((right - left) * (bottom - top), 1)
    left, right = np.clip(left, 0, width), np.clip(right, 0, width)
    top, bottom = np.clip(top, 0, height), np.clip(bottom, 0, height)
    inside = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    return (inside / area).astype(np.float32)


def make_bag_cohort(
    folder: str | os.PathLike[str],
    *,
    num_bags: int = 60,
    width: int = 64,
    seed: int = 0,
    bag_size: tuple[int, int] = (40, 200),
    planted: float = 0.1,
    classes: Sequence[str] = ("normal", "tumor"),
    grid: tuple[int, int] | None = None,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
) -> Path:
    """Write feature bags in which a connected patch of instances carries the class, and the cohort table.

    Instances are one of four background prototypes plus unit noise; in a bag of class ``k > 0`` the planted ones are
    around prototype ``k`` instead. The bags keep every instance's class as the dataset ``instance_labels``.

    Args:
        folder: gets ``bags/<slide_id>.h5`` and ``cohort.csv``.
        num_bags: how many bags; classes alternate.
        width: number of feature channels.
        seed: of everything.
        bag_size: smallest and largest number of instances.
        planted: share of planted instances in a bag, at least one instance.
        classes: names; the first has nothing planted.
        grid: ``(h, w)`` for spatial bags.
        fractions: shares of train, val and test.

    Returns:
        Path of ``cohort.csv``; the slides themselves do not exist.
    """
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    prototypes = rng.normal(0, 0.7, (4 + len(classes), width))
    digest = hashlib.sha256(f"{seed} {width} {grid}".encode()).hexdigest()[:16]
    slides = []
    for index in range(num_bags):
        label, slide_id = index % len(classes), f"bag_{index:03d}"
        n = int(rng.integers(bag_size[0], bag_size[1] + 1))
        coords, instance_labels = _planted_grid(rng, n, label, planted)
        kind = np.where(instance_labels > 0, 4 + instance_labels, rng.integers(0, 4, n))
        shape = (n, width) if grid is None else (n, width, *grid)
        centre = prototypes[kind].reshape(n, width, *(1,) * (len(shape) - 2))
        info = BagInfo(
            slide_id=slide_id,
            encoder="synthetic",
            encoder_digest=digest,
            tile_size=256,
            tile_size_level0=512.0,
            overlap=0,
            target_mpp=0.5,
            level0_size=(int(coords[:, 0].max()) + 512, int(coords[:, 1].max()) + 512),
            mpp=0.25,
            reader="synthetic",
        )
        features = (centre + rng.standard_normal(shape)).astype(np.float16)
        BagFile.write(folder / "bags" / f"{slide_id}.h5", features, coords, info, {"instance_labels": instance_labels})
        slides.append(CohortSlide(slide_id=slide_id, patient_id=f"patient_{index:03d}", label=label))
    cohort = Cohort(folder / "cohort.csv", tuple(slides), ("label",), tuple(classes))
    return split_cohort(cohort, fractions, seed).write(folder / "cohort.csv")


def _slide_id(index: int) -> str:
    return f"slide_{index:03d}"


def _patient(index: int) -> int:
    """Slides 8 and 10 of every twelve belong to one patient, so do 9 and 11."""
    return index - 2 if index % 12 in (10, 11) else index


def _write_slide(folder: Path, index: int, *, seed: int, size: tuple[int, int], mpp: float) -> None:
    from monai_mil.bags.synthetic_slide import MASK_DOWNSAMPLE, plan_slide
    from monai_mil.slides import write_pyramid

    plan = plan_slide(
        size, mpp, tumour=bool(index % 2), seed=int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    )
    slide, mask = folder / "slides" / f"{_slide_id(index)}.tif", folder / "masks" / f"{_slide_id(index)}.npz"
    slide.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(slide, plan.bands(), mpp=mpp, size=size)
    with replacing(mask) as name, name.open("wb") as file:
        np.savez_compressed(file, tumour=plan.tumour, downsample=MASK_DOWNSAMPLE)


def _planted_grid(rng: np.random.Generator, n: int, label: int, planted: float) -> tuple[np.ndarray, np.ndarray]:
    """Tiles in rows of a square, and the class of each: the ones nearest to a random tile carry the bag's label."""
    columns = int(np.ceil(np.sqrt(n)))
    index = np.stack([np.arange(n) % columns, np.arange(n) // columns], axis=1)
    labels = np.zeros(n, np.int64)
    if label:
        distance = np.linalg.norm(index - index[rng.integers(n)], axis=1)
        labels[np.argsort(distance, kind="stable")[: max(1, round(planted * n))]] = label
    return index * 512, labels
