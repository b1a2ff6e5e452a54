"""One slide of a cohort, one bag or one a level: resumed behind its last whole batch, written with its tissue mask."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_mil.bags import BagFile, BagInfo, info_attributes, level_folder
from monai_mil.embedding.in_flight import still_wanted
from monai_mil.embedding.job import CaseKind, EmbedJob, OnInstances, kept_bag, number_type
from monai_mil.embedding.partial_rows import PartialRows, header_of, sums_of
from monai_mil.embedding.pictures import write_picture
from monai_mil.embedding.slide import EmbedSettings, embed_slide, on_host, tile_slide, tree_slide
from monai_mil.files import replacing
from monai_mil.slides import TISSUE_VERSION, Slide, TileGrid, TissueMask, decoder_of, recorded_decoder, slide_files

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder

SLIDES = CaseKind("slide", "tiles")


@dataclass(frozen=True)
class SlideJob(EmbedJob):
    """A slide, how it is cut into tiles, and how many of them the encoder sees at once.

    With ``levels`` in its settings the slide has one bag a level, ``<out_dir>/level_<j>/<case_id>.h5``, the coarsest
    made first. With ``pictures`` one of the slide with its tissue and tiles is written beside the bags.
    """

    kind = SLIDES
    ahead = 1

    settings: EmbedSettings
    batch_size: int
    pictures: bool = field(default=False, kw_only=True)

    @property
    def levels(self) -> tuple[int | None, ...]:
        """The levels of the quadtree, coarsest first; only None where there is no tree."""
        levels = self.settings.levels
        return (None,) if levels is None else tuple(reversed(range(levels)))

    @property
    def bags(self) -> tuple[Path, ...]:
        """The bags of the levels, or the one bag."""
        return tuple(level_folder(self.out_dir, level) / f"{self.stem}.h5" for level in self.levels)

    @property
    def rows(self) -> tuple[Path, ...]:
        """For every bag the features of the tiles done so far; their header lies beside them."""
        return tuple(level_folder(self.lock.parent, level) / f"{self.stem}.rows" for level in self.levels)

    @property
    def mask(self) -> Path:
        """The tissue mask beside the bags, one pixel of the mask a pixel of the PNG."""
        return self.out_dir / "tissue" / f"{self.stem}.png"

    @property
    def picture(self) -> Path:
        """The slide with its tissue and its tiles, for the eye."""
        return self.out_dir / "pictures" / f"{self.stem}.jpg"

    @property
    def files(self) -> tuple[Path, ...]:
        """Bags, tissue mask, picture, and the headers of the rows."""
        return (*self.bags, self.mask, self.picture, *map(header_of, self.rows))

    @property
    def unfinished(self) -> tuple[Path, ...]:
        """The rows, their headers and their checksums."""
        return (*map(header_of, self.rows), *map(sums_of, self.rows), *self.rows)

    def embed(self, encoder: Encoder, on_instances: OnInstances) -> tuple[int, tuple[str, ...]]:
        """Write the tissue mask, then bag after bag what is missing; returns the number of tiles."""
        source = self.source()
        with self.settings.open(self.path) as slide:
            grids, tissue = self._cut(slide)
            total, done = sum(map(len, grids)), 0
            _write_mask(self.mask, tissue)
            if self.pictures:
                write_picture(self.picture, self.case_id, slide, tissue, grids[0])
            for number, grid in enumerate(grids):
                if kept_bag(self, self.bags[number], encoder) is None:
                    self._embed(slide, grid, number, encoder, source, _shifted(on_instances, done, total))
                done += len(grid)
        return total, (*slide.remarks, *tissue.remarks)

    def complete_kept(self) -> None:
        """Draw the picture if it is wanted and not there; the slide's file must be."""
        if self.pictures and self.path.exists() and not self.picture.exists():
            with self.settings.open(self.path) as slide:
                grids, tissue = self._cut(slide)
                write_picture(self.picture, self.case_id, slide, tissue, grids[0])

    def remarks_on(self, found: BagInfo) -> tuple[str, ...]:
        """Whether another version of the algorithm found the tissue."""
        if found.tissue_version in (None, TISSUE_VERSION):
            return ()
        version = found.tissue_version
        return (f"its tissue was found by version {version} of the algorithm, this run's is {TISSUE_VERSION}: kept",)

    def _cut(self, slide: Slide) -> tuple[tuple[TileGrid, ...], TissueMask]:
        if self.settings.levels is None:
            grid, tissue = tile_slide(slide, self.settings, self.case_id)
            return (grid,), tissue
        tree, tissue = tree_slide(slide, self.settings, self.case_id)
        return tree.grids, tissue

    def _embed(
        self,
        slide: Slide,
        grid: TileGrid,
        number: int,
        encoder: Encoder,
        source: tuple[str, str],
        on_tiles: Callable[[int], None],
    ) -> None:
        """Encode what is missing of bag ``number``, then write it."""
        level = self.levels[number]
        info = dataclasses.replace(
            self.settings.info(slide, grid, encoder, self.case_id, level, source[0]),
            decoder=decoder_of(slide, self.settings.decoder),
            encoder_dtype=number_type(encoder),
            source_stamp=source[1],
        )
        shape = (len(grid), encoder.width, *(encoder.grid or ()))
        with closing(PartialRows(self.rows[number], _header(info, grid), shape, self.batch_size)) as rows:
            missing = grid.take(slice(rows.done, None))
            if len(missing):
                batches = embed_slide(
                    slide,
                    missing,
                    encoder,
                    batch_size=self.batch_size,
                    device=self.device,
                    decoder=self.settings.decoder,
                )
                with closing(batches):
                    for features in on_host(batches):
                        on_tiles(rows.done)
                        rows.append(features)
                        still_wanted()
            on_tiles(rows.done)
            extras = {} if level is None else {"inside": grid.inside, "tissue_fraction": grid.tissue_fraction}
            BagFile.write(self.bags[number], rows.read(), grid.coords, info, extras, self.storage)

    def source_files(self) -> tuple[Path, ...]:
        """The files of the slide."""
        return slide_files(self.path)

    def recorded_settings(self, found: BagInfo) -> dict[str, Any]:
        """As every job's, with the decoder that was chosen in place of the library."""
        decoder = recorded_decoder(found.decoding, found.decoder)
        return super().recorded_settings(found) | {"decoder": decoder}

    def required_settings(self, bag: Path, found: BagInfo) -> dict[str, Any]:
        """Tile and tissue settings, the level, and the pixel size, given or not."""
        settings, level = self.settings, self.levels[self.bags.index(bag)]
        wanted: dict[str, Any] = {
            "tile_size": settings.tile_size,
            "target_mpp": settings.target_mpp * 2 ** (level or 0),
            "overlap": settings.overlap,
            "tissue": settings.tissue_record(self.case_id),
            "level": level,
            "levels": settings.levels,
            "series": settings.series,
            "plane": settings.plane,
            "decoder": settings.decoder,
        }
        if found.icc is not None or settings.icc is not None:  # bags of format 1 do not say
            wanted["icc"] = settings.icc or "none"
        # What the file says is not known before it is opened: a bag of a given pixel size is no bag of the file's.
        wanted |= {"given_mpp": None} if settings.mpp is None else {"mpp": settings.mpp}
        return wanted


def _shifted(on_instances: OnInstances, before: int, total: int) -> Callable[[int], None]:
    """Tell the tiles of one bag as tiles of all."""
    return lambda done: on_instances(before + done, total)


def _header(info: BagInfo, grid: TileGrid) -> dict[str, Any]:
    """Everything the features depend on: the slide's content, settings, encoder, and the very tiles."""
    content = dataclasses.replace(info, slide_path=None, source_stamp=None, icc_profile=None)
    return info_attributes(content) | {"coords": hashlib.sha256(grid.coords.tobytes()).hexdigest()}


def _write_mask(path: Path, tissue: TissueMask) -> None:
    import cv2

    with replacing(path) as partial:
        partial.write_bytes(cv2.imencode(".png", tissue.mask.astype(np.uint8) * 255)[1].tobytes())
