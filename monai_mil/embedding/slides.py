"""From a cohort of slides to its bags."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from monai_mil.bags import check_storage
from monai_mil.cohorts import Cohort, is_table, named_slides, read_cohort
from monai_mil.embedding.pictures import write_contact_sheet
from monai_mil.embedding.run import EmbedReport, EmbedRun, reject
from monai_mil.embedding.slide import EmbedSettings
from monai_mil.embedding.slide_job import SLIDES, SlideJob
from monai_mil.encoders import get_encoder
from monai_mil.slides import Decoder, TissueSettings

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder


def embed_cohort(
    cohort: Cohort | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    encoder: Encoder | str = "texture",
    *,
    tile_size: int | None = None,
    target_mpp: float | None = None,
    overlap: int = 0,
    levels: int | None = None,
    min_tissue: float = 0.25,
    tissue: TissueSettings | None = None,
    masks: str | os.PathLike[str] | None = None,
    pictures: bool = False,
    mpp: float | None = None,
    series: int | None = None,
    plane: int | None = None,
    icc: Literal["apply"] | None = None,
    decoder: Decoder = "exact",
    batch_size: int = 64,
    storage: Literal["float16", "uint8"] = "float16",
    device: str = "cpu",
    overwrite: bool = False,
    retry: bool = False,
    progress: bool = True,
    workers: int = 1,
    scheduler: str | None = None,
) -> EmbedReport:
    """Write the bag of every slide to ``<out_dir>/<slide_id>.h5`` and its tissue mask to ``<out_dir>/tissue``.

    A run may be killed at any moment and started again: finished slides are kept, an unfinished one goes on behind its
    last whole batch. Several runs may share ``out_dir``; each slide is done by one of them.

    With ``levels`` the tiles are a quadtree (``slides.TileTree``) and every level has a bag of its own,
    ``<out_dir>/level_<j>/<slide_id>.h5``, level 0 the finest. Each is an ordinary bag with two datasets more:
    ``inside``, False where a tile lies beyond the slide, and ``tissue_fraction``. ``LoadTreed`` loads them together.

    Args:
        cohort: a cohort, its table, a slide or a folder of slides, or a list of slides and folders; see
            ``cohorts.named_slides`` for what slides of one name are called.
        out_dir: folder of the bags.
        encoder: an encoder or its name.
        tile_size: edge of a tile in pixels; default the encoder's.
        target_mpp: micrometres per pixel of the tiles, of the finest level; default the encoder's.
        overlap: overlap of neighbouring tiles in pixels.
        levels: levels of the quadtree, each of half the magnification of the next; None for one bag a slide.
        min_tissue: least share of tissue in a tile.
        tissue: how tissue is found.
        masks: folder of tissue masks to take instead, one a slide (see ``slides.read_tissue``); a slide without one
            fails.
        pictures: write ``<out_dir>/pictures``: every slide with its tissue and tiles, and ``index.html`` with all.
        mpp: micrometres per level-0 pixel, whatever the slides say; a cohort's column ``mpp`` says it of single slides.
        series: which image of files that hold several, counted from 0; default the largest.
        plane: which focal plane of files that hold several, counted from 0; default the middle one.
        icc: ``"apply"`` turns pixels into sRGB by the slides' ICC profiles; default leaves them as they are.
        decoder: how stored tiles become pixels, see ``slides.stream_tiles``.
        batch_size: tiles a step.
        storage: how bags store features; uint8 takes half the space (see ``BagFile.write``).
        device: of an encoder given by name; tiles are decoded where the encoder is.
        overwrite: replace bags of other settings or another encoder, which are errors without it. Bags that fit are
            kept, so that this too can be killed, resumed and shared; those that cannot be read are made anew and told.
        retry: try slides again in which the process died twice, which are set aside.
        progress: show a bar, and at the end what failed.
        workers: processes on this machine (more than one needs the extra ``scale``).
        scheduler: address of a Dask scheduler to spread the slides over (needs the extra ``scale``).

    Returns:
        What became of every slide; a slide that fails never stops the others.

    Raises:
        CohortError: the table is invalid, or a folder holds no slide.
        EncoderError: the encoder is unknown or cannot be loaded.
        SettingsError: there is no such storage, or a setting fits no slide.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.bags import BagFile
        >>> from monai_mil.embedding import embed_cohort
        >>> from monai_mil.slides import write_pyramid
        >>> image = np.full((1024, 1024, 3), 240, np.uint8)
        >>> image[:, :512] = (180, 60, 140)
        >>> write_pyramid(folder / "S-1.tif", image, mpp=0.5)
        >>> report = embed_cohort(folder / "S-1.tif", folder / "bags", "texture", progress=False)
        >>> report.results[0].status, BagFile(folder / "bags" / "S-1.h5").n  # the tiles of the left half
        ('embedded', 8)
        >>> embed_cohort(folder / "S-1.tif", folder / "bags", "texture", progress=False).results[0].status
        'kept'
    """
    check_storage(storage)
    slides, pixel_sizes = _slides(cohort)
    loaded = get_encoder(encoder, device=device) if isinstance(encoder, str) else encoder
    settings = EmbedSettings.for_encoder(
        loaded,
        tile_size=tile_size,
        target_mpp=target_mpp,
        overlap=overlap,
        levels=levels,
        min_tissue=min_tissue,
        tissue=tissue or TissueSettings(),
        masks=None if masks is None else os.fspath(masks),
        mpp=mpp,
        series=series,
        plane=plane,
        icc=icc,
        decoder=decoder,
    )
    out_dir = Path(out_dir)
    rejected = reject(SLIDES, slides)
    jobs = {
        index: SlideJob(
            name,
            path,
            out_dir,
            str(loaded.device),
            overwrite,
            settings if pixel_sizes[index] is None else replace(settings, mpp=pixel_sizes[index]),
            batch_size,
            storage=storage,
            retry=retry,
            pictures=pictures,
        )
        for index, (name, path) in enumerate(slides)
        if path is not None and index not in rejected
    }
    run = EmbedRun(SLIDES, out_dir, loaded, encoder, settings, progress, workers, scheduler)
    report = run(jobs, rejected)
    if pictures:
        write_contact_sheet(out_dir / "pictures")
    return report


def _slides(
    cohort: Cohort | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> tuple[list[tuple[str, Path | None]], list[float | None]]:
    """Slide ids and paths, in order, and the pixel sizes that a cohort gives."""
    if isinstance(cohort, (str, os.PathLike)):
        cohort = read_cohort(cohort, labels=()) if is_table(cohort) else [cohort]
    if isinstance(cohort, Cohort):
        return [(slide.slide_id, slide.path) for slide in cohort.slides], [slide.mpp for slide in cohort.slides]
    named: list[tuple[str, Path | None]] = list(named_slides(cohort))
    return named, [None] * len(named)
