"""One slide of a cohort: locked, resumed where it was left, written whole."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from monai_mil.bags.embed import EmbedSettings, embed_slide, tile_slide
from monai_mil.bags.file import BagFile
from monai_mil.bags.info import BagInfo
from monai_mil.bags.partial import PartialRows, discard_rows, header_of
from monai_mil.errors import BagError, MonaiMILError
from monai_mil.files import replacing
from monai_mil.slides import TileGrid, TissueMask, open_slide

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder

OnTiles = Callable[[int, int], None]


@dataclass(frozen=True)
class SlideResult:
    """What became of one slide: ``embedded`` now, ``kept`` from an earlier run, or ``failed`` with its ``error``."""

    slide_id: str
    path: str
    status: Literal["embedded", "kept", "failed"]
    tiles: int = 0
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class EmbedJob:
    """Everything one slide needs; may travel to another process."""

    slide_id: str
    path: Path
    out_dir: Path
    settings: EmbedSettings
    batch_size: int
    device: str
    overwrite: bool

    @property
    def bag(self) -> Path:
        """The finished bag file."""
        return self.out_dir / f"{self.slide_id}.h5"

    @property
    def mask(self) -> Path:
        """The tissue mask beside the bags, one pixel of the mask a pixel of the PNG."""
        return self.out_dir / "tissue" / f"{self.slide_id}.png"

    @property
    def unfinished(self) -> Path:
        """Rows of a slide in work; lock and header lie beside them."""
        return self.out_dir / ".partial" / f"{self.slide_id}.rows"


def run_job(job: EmbedJob, encoder: Encoder, on_tiles: OnTiles, *, wait: bool) -> SlideResult | None:
    """Make the bag of one slide, whatever goes wrong.

    Args:
        job: the slide.
        encoder: the encoder.
        on_tiles: told the tiles done and the tiles in all, after every batch.
        wait: wait for another process that works on the slide.

    Returns:
        The result; None if another process works on the slide and ``wait`` is false.
    """
    start = time.perf_counter()
    try:
        job.unfinished.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(job.unfinished.with_suffix(".lock"), timeout=-1 if wait else 0):
            kept = _kept(job, encoder)
            if kept is not None:
                discard_rows(job.unfinished)
                return SlideResult(job.slide_id, str(job.path), "kept", kept)
            tiles = _embed(job, encoder, on_tiles)
            return SlideResult(job.slide_id, str(job.path), "embedded", tiles, time.perf_counter() - start)
    except Timeout:
        return None
    except Exception as error:
        message = str(error) if isinstance(error, MonaiMILError) else f"slide '{job.path}': {error!r}"
        return SlideResult(job.slide_id, str(job.path), "failed", seconds=time.perf_counter() - start, error=message)


def _embed(job: EmbedJob, encoder: Encoder, on_tiles: OnTiles) -> int:
    """Encode what is missing, then write mask and bag; returns the number of tiles."""
    for file in (job.bag, job.mask, header_of(job.unfinished)):
        for left_by_killed_run in file.parent.glob(f".{glob.escape(file.name)}.*.tmp"):
            left_by_killed_run.unlink(missing_ok=True)
    with open_slide(job.path, default_mpp=job.settings.mpp) as slide:
        grid, tissue = tile_slide(slide, job.settings)
        info = job.settings.info(slide, grid, encoder, job.slide_id)
        shape = (len(grid), encoder.width, *(encoder.grid or ()))
        with closing(PartialRows(job.unfinished, _header(info, grid), shape, job.batch_size)) as rows:
            on_tiles(rows.done, len(grid))
            missing = _rest(grid, rows.done)
            if len(missing):
                for features in embed_slide(slide, missing, encoder, batch_size=job.batch_size, device=job.device):
                    rows.append(features.cpu().numpy())
                    on_tiles(rows.done, len(grid))
            _write_mask(job.mask, tissue)
            BagFile.write(job.bag, rows.read(), grid.coords, info)
    discard_rows(job.unfinished)
    return len(grid)


def _rest(grid: TileGrid, start: int) -> TileGrid:
    """The tiles of a grid from number ``start`` on."""
    return dataclasses.replace(
        grid, coords=grid.coords[start:], index=grid.index[start:], tissue_fraction=grid.tissue_fraction[start:]
    )


def _header(info: BagInfo, grid: TileGrid) -> dict[str, Any]:
    """Everything the features depend on: slide, settings, encoder, and the very tiles."""
    return asdict(info) | {"coords": hashlib.sha256(grid.coords.tobytes()).hexdigest()}


def _write_mask(path: Path, tissue: TissueMask) -> None:
    import cv2

    with replacing(path) as partial:
        partial.write_bytes(cv2.imencode(".png", tissue.mask.astype(np.uint8) * 255)[1].tobytes())


def _kept(job: EmbedJob, encoder: Encoder) -> int | None:
    """Number of tiles in the bag that exists and can stay; None if there is none, or it is to be replaced."""
    if not job.bag.exists():
        return None
    try:
        return _check_kept(job, encoder)
    except BagError:
        if job.overwrite:
            return None
        raise


def _check_kept(job: EmbedJob, encoder: Encoder) -> int:
    """Number of tiles in the bag that exists; BagError if this run would make another one."""
    settings = job.settings
    wanted: dict[str, Any] = {
        "encoder": encoder.name,
        "encoder_digest": encoder.digest,
        "width": encoder.width,
        "grid": encoder.grid,
        "tile_size": settings.tile_size,
        "target_mpp": settings.target_mpp,
        "overlap": settings.overlap,
        "tissue": settings.tissue_record(),
    }
    with BagFile(job.bag) as bag:
        n, found = bag.n, vars(bag.info) | {"width": bag.width, "grid": bag.grid}
    if settings.mpp not in (None, found["mpp"]):
        with open_slide(job.path, default_mpp=settings.mpp) as slide:
            wanted["mpp"] = slide.mpp
    different = [f"{name} {found[name]} instead of {wanted[name]}" for name in wanted if found[name] != wanted[name]]
    if different:
        raise BagError(
            f"bag '{job.bag}': made with other settings ({'; '.join(different)}); "
            "choose another folder, or overwrite to make it anew"
        )
    return n
