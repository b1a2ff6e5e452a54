"""Synthetic cohorts of H&E-like slides with planted tumour and its masks, seeded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monai_mil.cohorts import Cohort, CohortSlide, split_cohort
from monai_mil.synthetic.mask import write_masks

if TYPE_CHECKING:
    from monai_mil.synthetic.slide import LesionKind

LESION_RADII = {"small": 60.0, "moderate": 160.0, "large": 400.0}
"""Lesions of three sizes for ``make_slide_cohort``, radii in micrometres.

Their areas are about 0.011, 0.08 and 0.5 mm2, so that 0.03 and 0.2 mm2 (120,000 and 800,000 pixels of 0.5 micrometres)
part them.
"""
_SLIDE_CLASSES = ("normal", "tumor")


def make_slide_cohort(
    folder: str | os.PathLike[str],
    *,
    num_slides: int = 60,
    seed: int = 0,
    size: tuple[int, int] = (4096, 4096),
    mpp: float = 0.5,
    lesions: Mapping[str, float] | None = None,
    kind: LesionKind = "tumour",
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    workers: int = 1,
) -> Path:
    """Write pyramidal H&E-like slides, half of them with planted tumour, their masks and the cohort table.

    Tumour nuclei are crowded, larger, darker and of many shapes; lymph follicles in both classes are as blue as
    tumour, so that colour alone does not tell. Lesions differ much in size. Some patients have two slides.

    Args:
        folder: gets ``slides/<slide_id>.tif``, ``masks/<slide_id>.npz`` (see ``tile_truth``), the same mask as a
            pyramid of the slide's size in ``masks/<slide_id>.tif`` (255 where tumour is) and ``cohort.csv``.
        num_slides: how many slides.
        seed: of everything; the same seed gives the same pixels.
        size: width and height of level 0 in pixels.
        mpp: micrometres per pixel.
        lesions: name and radius in micrometres of every size of lesion, ``LESION_RADII`` for example: then a tumour
            slide has one lesion, in one piece, and the sizes take turns and are kept in proportion by the splits.
        kind: ``"tumour"``, or ``"follicular"``: lesions that differ from lymph follicles only by what 0.5 micrometres a
            pixel show and 1 hardly does. Follicles and lesions are one to four in all, but none on every second normal
            slide: dense tissue is a hint that every magnification sees, and no more.
        fractions: shares of train, val and test.
        workers: processes that paint at the same time.

    Returns:
        Path of ``cohort.csv``: slide_id, patient_id, path, split, label (``normal`` or ``tumor``) and, with
        ``lesions``, lesion (the size's name, nothing on normal slides).

    Examples:
        >>> from monai_mil.cohorts import read_cohort
        >>> from monai_mil.synthetic import make_slide_cohort
        >>> cohort = read_cohort(make_slide_cohort(folder, num_slides=10, size=(512, 512)))
        >>> cohort.classes, cohort.slides[0].path.relative_to(folder).as_posix()
        (('normal', 'tumor'), 'slides/slide_000.tif')
    """
    folder = Path(folder)
    radii = lesions or {}
    names = ("", *(radii or _SLIDE_CLASSES[1:]))
    kinds = [1 + index // 2 % (len(names) - 1) if index % 2 else 0 for index in range(num_slides)]
    paint = partial(_write_slide, folder, seed=seed, size=size, mpp=mpp, kind=kind)
    planted = [radii.get(names[kind]) for kind in kinds]
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            list(pool.map(paint, range(num_slides), planted))
    else:
        for index, radius in enumerate(planted):
            paint(index, radius)
    cohort = _split(folder, kinds, names, fractions, seed)
    return cohort.write(folder / "cohort.csv", {"lesion": [names[kind] for kind in kinds]} if lesions else None)


def _split(folder: Path, kinds: Sequence[int], names: Sequence[str], fractions: Sequence[float], seed: int) -> Cohort:
    """The cohort, split with every size of lesion in proportion; ``kinds`` are 0 (normal) or the number of a size."""
    slides = tuple(
        CohortSlide(
            slide_id=_slide_id(index),
            patient_id=f"patient_{_patient(index):03d}",
            path=folder / "slides" / f"{_slide_id(index)}.tif",
            label=kind,
        )
        for index, kind in enumerate(kinds)
    )
    by_kind = split_cohort(Cohort(folder / "cohort.csv", slides, ("label",), tuple(names)), fractions, seed)
    slides = tuple(dataclasses.replace(slide, label=int(slide.label != 0)) for slide in by_kind.slides)
    return dataclasses.replace(by_kind, slides=slides, classes=_SLIDE_CLASSES)


def _slide_id(index: int) -> str:
    return f"slide_{index:03d}"


def _patient(index: int) -> int:
    """Slides 8 and 10 of every twelve belong to one patient, so do 9 and 11."""
    return index - 2 if index % 12 in (10, 11) else index


def _write_slide(
    folder: Path,
    index: int,
    radius: float | None,
    *,
    seed: int,
    size: tuple[int, int],
    mpp: float,
    kind: LesionKind,
) -> None:
    from monai_mil.slides import write_pyramid
    from monai_mil.synthetic.slide import MASK_DOWNSAMPLE, plan_slide

    slide_seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    plan = plan_slide(size, mpp, tumour=bool(index % 2), seed=slide_seed, radius=radius, kind=kind)
    slide = folder / "slides" / f"{_slide_id(index)}.tif"
    slide.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(slide, plan.bands(), mpp=mpp, size=size)
    write_masks(folder / "masks", slide.stem, plan.tumour, MASK_DOWNSAMPLE, mpp, size)
