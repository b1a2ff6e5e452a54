"""From a cohort of slides to bags: resumable, safe to kill and to run twice at a time, one bad slide stops nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from monai_mil import __version__
from monai_mil.bags.cohort import Cohort
from monai_mil.bags.cohort_reader import read_cohort
from monai_mil.bags.embed import EmbedSettings
from monai_mil.bags.embed_job import EmbedJob, SlideResult, run_job
from monai_mil.bags.embed_progress import EmbedProgress
from monai_mil.encoders import get_encoder
from monai_mil.errors import OutputError
from monai_mil.files import replacing
from monai_mil.slides import TissueSettings, slide_id

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder

_TABLES = (".csv", ".json")


@dataclass(frozen=True)
class EmbedReport:
    """What became of a cohort.

    Attributes:
        out_dir: folder of the bags.
        results: one for every slide, in the cohort's order.
        manifest: the same as JSON, with settings and encoder; None if it could not be written.
    """

    out_dir: Path
    results: tuple[SlideResult, ...]
    manifest: Path | None

    @property
    def failed(self) -> tuple[SlideResult, ...]:
        """The slides without a bag."""
        return tuple(result for result in self.results if result.status == "failed")


def embed_cohort(
    cohort: Cohort | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out_dir: str | os.PathLike[str],
    encoder: Encoder | str = "texture",
    *,
    tile_size: int | None = None,
    target_mpp: float | None = None,
    overlap: int = 0,
    min_tissue: float = 0.25,
    tissue: TissueSettings | None = None,
    mpp: float | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = True,
    workers: int = 1,
    scheduler: str | None = None,
) -> EmbedReport:
    """Write the bag of every slide to ``<out_dir>/<slide_id>.h5`` and its tissue mask to ``<out_dir>/tissue``.

    A run may be killed at any moment and started again: finished slides are kept, an unfinished one goes on behind its
    last whole batch. Several runs may share ``out_dir``; each slide is done by one of them.

    Args:
        cohort: a cohort, its table, one slide, or a list of slides.
        out_dir: folder of the bags.
        encoder: an encoder or its name.
        tile_size: edge of a tile in pixels; default the encoder's.
        target_mpp: micrometres per pixel of the tiles; default the encoder's.
        overlap: overlap of neighbouring tiles in pixels.
        min_tissue: least share of tissue in a tile.
        tissue: how tissue is found.
        mpp: micrometres per pixel of slides that do not say it themselves.
        batch_size: tiles a step.
        device: of an encoder given by name; tiles are decoded where the encoder is.
        overwrite: replace bags of other settings or another encoder, and damaged ones, which are errors without it.
            Bags that fit are kept, so that this too can be killed, resumed and shared.
        progress: show a bar, and at the end what failed.
        workers: processes on this machine (more than one needs the extra ``scale``).
        scheduler: address of a Dask scheduler to spread the slides over (needs the extra ``scale``).

    Returns:
        What became of every slide; a slide that fails never stops the others.

    Raises:
        CohortError: the table is invalid.
        EncoderError: the encoder is unknown or cannot be loaded.
    """
    slides = _slides(cohort)
    loaded = get_encoder(encoder, device=device) if isinstance(encoder, str) else encoder
    settings = EmbedSettings.for_encoder(
        loaded,
        tile_size=tile_size,
        target_mpp=target_mpp,
        overlap=overlap,
        min_tissue=min_tissue,
        tissue=tissue or TissueSettings(),
        mpp=mpp,
    )
    out_dir = Path(out_dir)
    results = _reject(slides)
    jobs = {
        index: EmbedJob(name, path, out_dir, settings, batch_size, str(loaded.device), overwrite)
        for index, (name, path) in enumerate(slides)
        if path is not None and index not in results
    }
    manifest = _Manifest(out_dir, loaded, settings)
    with EmbedProgress(len(slides), enabled=progress) as bar:
        for result in results.values():
            bar.finish(result)
        if workers > 1 or scheduler is not None:
            from monai_mil.bags.scale import embed_with_dask

            finished = embed_with_dask(jobs, encoder, workers=workers, scheduler=scheduler)
        else:
            finished = _in_turn(jobs, loaded, bar)
        for index, result in finished:
            results[index] = result
            bar.finish(result)
            if result.status != "kept":
                manifest.write(results)
    ordered = tuple(results[index] for index in range(len(slides)))
    return EmbedReport(out_dir, ordered, manifest.write(results))


def _slides(
    cohort: Cohort | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> list[tuple[str, Path | None]]:
    """Slide ids and paths, in order."""
    if isinstance(cohort, (str, os.PathLike)):
        path = Path(cohort)
        cohort = read_cohort(path, labels=()) if path.suffix.lower() in _TABLES else [path]
    if isinstance(cohort, Cohort):
        return [(slide.slide_id, slide.path) for slide in cohort.slides]
    return [(slide_id(path), path) for path in map(Path, cohort)]


def _reject(slides: Sequence[tuple[str, Path | None]]) -> dict[int, SlideResult]:
    """Slides that cannot have a bag: without a file, or under a name that is taken."""
    rejected: dict[int, SlideResult] = {}
    first: dict[str, Path | None] = {}
    for index, (name, path) in enumerate(slides):
        if path is None:
            error = f"slide '{name}': the table has no path; fill the column 'path'"
        elif name in first:
            error = f"slide '{path}': the name '{name}' is taken by '{first[name]}'; rename it or give a table"
        else:
            first[name] = path
            continue
        rejected[index] = SlideResult(name, str(path or ""), "failed", error=error)
    return rejected


def _in_turn(jobs: Mapping[int, EmbedJob], encoder: Encoder, bar: EmbedProgress) -> Iterator[tuple[int, SlideResult]]:
    """Do the slides nobody else works on, then wait for the others' and do what they did not finish."""
    busy: dict[int, EmbedJob] = {}
    for turn, wait in ((jobs, False), (busy, True)):
        for index, job in turn.items():
            bar.start(job.slide_id)
            result = run_job(job, encoder, bar.advance, wait=wait)
            if result is None:
                busy[index] = job
            else:
                yield index, result


class _Manifest:
    """The run's record in ``<out_dir>/runs``, written anew after every slide so that a killed run leaves one too."""

    def __init__(self, out_dir: Path, encoder: Encoder, settings: EmbedSettings) -> None:
        started = datetime.now(UTC)
        self._path = out_dir / "runs" / f"{started:%Y%m%dT%H%M%S}-{os.getpid()}.json"
        self._header = {
            "version": __version__,
            "started": started.isoformat(timespec="seconds"),
            "encoder": encoder.name,
            "encoder_digest": encoder.digest,
            "settings": asdict(settings),
        }

    def write(self, results: Mapping[int, SlideResult]) -> Path | None:
        """Write what is known; None if that fails, which must not hide the results themselves."""
        record = self._header | {
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "slides": [asdict(results[index]) for index in sorted(results)],
        }
        try:
            with replacing(self._path) as partial:
                partial.write_text(json.dumps(record, indent=4) + "\n")
        except OutputError:
            return None
        return self._path
