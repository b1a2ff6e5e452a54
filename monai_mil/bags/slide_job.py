"""One slide of a cohort: resumed behind its last whole batch, written with its tissue mask."""

from __future__ import annotations

import dataclasses
import hashlib
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_mil.bags.embed import EmbedSettings, embed_slide, tile_slide
from monai_mil.bags.embed_job import CaseKind, EmbedJob, OnInstances
from monai_mil.bags.file import BagFile
from monai_mil.bags.info import BagInfo
from monai_mil.bags.partial import PartialRows, header_of
from monai_mil.files import replacing
from monai_mil.slides import TileGrid, TissueMask, open_slide

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder

SLIDES = CaseKind("slide", "tiles")


@dataclass(frozen=True)
class SlideJob(EmbedJob):
    """A slide, how it is cut into tiles, and how many of them the encoder sees at once."""

    kind = SLIDES

    settings: EmbedSettings
    batch_size: int

    @property
    def mask(self) -> Path:
        """The tissue mask beside the bags, one pixel of the mask a pixel of the PNG."""
        return self.out_dir / "tissue" / f"{self.case_id}.png"

    @property
    def rows(self) -> Path:
        """Features of the tiles done so far; their header lies beside them."""
        return self.lock.with_suffix(".rows")

    @property
    def files(self) -> tuple[Path, ...]:
        """Bag, tissue mask, and the header of the rows."""
        return (self.bag, self.mask, header_of(self.rows))

    @property
    def unfinished(self) -> tuple[Path, ...]:
        """The rows and their header."""
        return (header_of(self.rows), self.rows)

    def embed(self, encoder: Encoder, on_instances: OnInstances) -> tuple[int, tuple[str, ...]]:
        """Encode what is missing, then write mask and bag; returns the number of tiles."""
        with open_slide(self.path, default_mpp=self.settings.mpp) as slide:
            grid, tissue = tile_slide(slide, self.settings)
            info = self.settings.info(slide, grid, encoder, self.case_id)
            shape = (len(grid), encoder.width, *(encoder.grid or ()))
            with closing(PartialRows(self.rows, _header(info, grid), shape, self.batch_size)) as rows:
                on_instances(rows.done, len(grid))
                missing = _rest(grid, rows.done)
                if len(missing):
                    batches = embed_slide(slide, missing, encoder, batch_size=self.batch_size, device=self.device)
                    for features in batches:
                        rows.append(features.cpu().numpy())
                        on_instances(rows.done, len(grid))
                _write_mask(self.mask, tissue)
                BagFile.write(self.bag, rows.read(), grid.coords, info, storage=self.storage)
        return len(grid), ()

    def wanted(self, found: BagInfo) -> dict[str, Any]:
        """Tile and tissue settings, and the pixel size where one is given."""
        settings = self.settings
        wanted: dict[str, Any] = {
            "tile_size": settings.tile_size,
            "target_mpp": settings.target_mpp,
            "overlap": settings.overlap,
            "tissue": settings.tissue_record(),
        }
        if settings.mpp not in (None, found.mpp):
            with open_slide(self.path, default_mpp=settings.mpp) as slide:
                wanted["mpp"] = slide.mpp
        return wanted


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
