"""From one slide to its features: the settings, the tiles they give, and the encoder's answer for every tile."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from monai_mil.bags import BagInfo
from monai_mil.embedding.in_flight import encoding
from monai_mil.embedding.watch import tell_watcher
from monai_mil.errors import NoTissueError, SettingsError, TooCoarseError
from monai_mil.identity import content_identity
from monai_mil.slides import (
    TISSUE_VERSION,
    Decoder,
    Slide,
    TileGrid,
    TileTree,
    TissueMask,
    TissueSettings,
    enlargement,
    find_tissue_file,
    open_slide,
    read_tissue,
    segment_tissue,
    slide_bounds,
    slide_files,
    stream_tiles,
    tissue_digest,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from monai_mil.encoders import Encoder

_MOST_ENLARGED = 4
"""A slide's finest pixels may be so many times as wide as those of its tiles; what more shows is not the tissue."""


@dataclass(frozen=True)
class EmbedSettings:
    """How tissue is found and slides are cut into tiles.

    Attributes:
        tile_size: edge of a tile in pixels at ``target_mpp``.
        target_mpp: micrometres per pixel of the tiles.
        overlap: overlap of neighbouring tiles in pixels at ``target_mpp``.
        min_tissue: least share of tissue in a tile.
        tissue: how tissue is found.
        masks: folder of tissue masks to take instead, ``<slide_id>.png`` or ``.geojson`` (``slides.read_tissue``).
        mpp: micrometres per level-0 pixel, whatever the slides say; None for what they say.
        levels: levels of the quadtree of tiles, each of half the magnification of the next, ``target_mpp`` the
            finest's; None for one grid of tiles.
        series: which image of files that hold several; None for the largest.
        plane: which focal plane of files that hold several; None for the middle one.
        icc: ``"apply"`` turns pixels into sRGB by the slide's ICC profile; None leaves them as they are.
        decoder: how stored tiles become pixels, see ``slides.Decoder``.

    Raises:
        SettingsError: a value fits no slide.

    Examples:
        >>> from monai_mil.embedding import EmbedSettings
        >>> from monai_mil.encoders import get_encoder
        >>> settings = EmbedSettings.for_encoder(get_encoder("texture"), min_tissue=0.5)
        >>> settings.tile_size, settings.target_mpp, settings.min_tissue
        (256, 0.5, 0.5)
    """

    tile_size: int
    target_mpp: float
    overlap: int = 0
    min_tissue: float = 0.25
    tissue: TissueSettings = field(default_factory=TissueSettings)
    masks: str | None = field(default=None, kw_only=True)
    mpp: float | None = None
    levels: int | None = None
    series: int | None = None
    plane: int | None = None
    icc: Literal["apply"] | None = None
    decoder: Decoder = "exact"

    def __post_init__(self) -> None:
        _require(self.tile_size >= 1, "tile size", self.tile_size, "at least 1 px")
        _require(self.target_mpp > 0, "target mpp", self.target_mpp, "above 0 µm a pixel")
        _require(0 <= self.overlap < self.tile_size, "overlap", self.overlap, f"from 0 to {self.tile_size - 1} px")
        _require(0 <= self.min_tissue <= 1, "min tissue", self.min_tissue, "a fraction from 0 to 1")
        _require(self.mpp is None or self.mpp > 0, "mpp", self.mpp, "above 0 µm a pixel")
        _require(self.masks is None or Path(self.masks).is_dir(), "masks", self.masks, "a folder")
        _require(self.levels is None or self.levels >= 1, "levels", self.levels, "at least 1")
        _require(self.levels is None or self.overlap == 0, "overlap", self.overlap, "0 px where there are levels")
        _require(self.series is None or self.series >= 0, "series", self.series, "at least 0")
        _require(self.plane is None or self.plane >= 0, "plane", self.plane, "at least 0")
        _require(self.icc in (None, "apply"), "icc", self.icc, "'apply' or none")
        _require(self.decoder in get_args(Decoder), "decoder", self.decoder, f"one of {', '.join(get_args(Decoder))}")

    @classmethod
    def for_encoder(
        cls, encoder: Encoder, *, tile_size: int | None = None, target_mpp: float | None = None, **settings: Any
    ) -> EmbedSettings:
        """Settings whose tile size and resolution are the encoder's own where none are given."""
        return cls(
            encoder.tile_size if tile_size is None else tile_size,
            encoder.target_mpp if target_mpp is None else target_mpp,
            **settings,
        )

    def open(self, path: str | os.PathLike[str]) -> Slide:
        """Open a slide with the pixel size, the image, the focal plane and the colours that are asked for.

        Raises:
            SlideReadError: it cannot be read so.
        """
        return open_slide(Path(path), mpp=self.mpp, series=self.series, plane=self.plane, icc=self.icc)

    def tissue_record(self, slide_id: str = "") -> dict[str, Any]:
        """What the bag file keeps of the tissue settings, or of the slide's own mask; plain JSON values.

        Raises:
            AnnotationError: there is a folder of masks, and none of the slide in it.
        """
        if self.masks is not None:
            record = {"mask": tissue_digest(find_tissue_file(self.masks, slide_id))}
        else:
            record = json.loads(json.dumps(asdict(self.tissue)))
        return record | {"min_tissue": self.min_tissue}

    def find_tissue(self, slide: Slide, slide_id: str | None = None) -> TissueMask:
        """The tissue of a slide, found or read.

        Raises:
            AnnotationError: the slide's mask is missing or does not fit.
        """
        if self.masks is None:
            return segment_tissue(slide, self.tissue)
        return read_tissue(find_tissue_file(self.masks, slide_id or slide.slide_id), slide)

    def info(
        self,
        slide: Slide,
        grid: TileGrid,
        encoder: Encoder,
        slide_id: str | None = None,
        level: int | None = None,
        source: str | None = None,
    ) -> BagInfo:
        """The frame of the bag that these settings give for a slide, or for one level of its quadtree.

        ``source`` is the slide's content as ``identity.content_identity`` gives it, read here where it is None.
        """
        return BagInfo(
            slide_id=slide_id or slide.slide_id,
            slide_path=str(slide.path.absolute()),
            encoder=encoder.name,
            encoder_digest=encoder.digest,
            tile_size=self.tile_size,
            tile_size_level0=float(grid.tile_size_level0),
            overlap=self.overlap,
            target_mpp=grid.target_mpp,
            level0_size=slide.size,
            mpp=slide.mpp,
            icc=self.icc or "none",
            decoding=None if self.decoder == "exact" else self.decoder,
            icc_profile=slide.icc_profile,
            series=self.series,
            plane=self.plane,
            given_mpp=self.mpp,
            bounds=slide_bounds(slide),
            source=source or content_identity(slide_files(slide.path)),
            reader=slide.reader,
            tissue=self.tissue_record(slide_id or slide.slide_id),
            tissue_version=TISSUE_VERSION if self.masks is None else None,
            level=level,
            levels=None if level is None else self.levels,
            remarks=_remarks(slide, grid),
        )


def _remarks(slide: Slide, grid: TileGrid) -> tuple[str, ...]:
    """What the reader assumed, and whether the slide is too coarse for its tiles; without the slide's name."""
    assumed = (remark.removeprefix(f"slide '{slide.path}': ") for remark in slide.remarks)
    coarse = enlargement(slide, grid)
    return (*assumed,) if coarse is None else (*assumed, coarse)


def _require(fits: bool, setting: str, value: object, allowed: str) -> None:
    """Raise a SettingsError unless the value of the setting ``fits``."""
    if not fits:
        raise SettingsError(f"{setting} {value}: must be {allowed}")


def tile_slide(slide: Slide, settings: EmbedSettings, slide_id: str | None = None) -> tuple[TileGrid, TissueMask]:
    """Find tissue and lay the tile grid over it.

    Raises:
        TooCoarseError: the slide is more than four times as coarse as its tiles; names it and both pixel sizes.
        AnnotationError: there is a folder of masks, and none in it that fits the slide.
        NoTissueError: no tile holds enough tissue; names the slide.
    """
    _require_detail(slide, settings)
    tissue = settings.find_tissue(slide, slide_id)
    grid = TileGrid.cover(
        slide,
        tissue,
        tile_size=settings.tile_size,
        target_mpp=settings.target_mpp,
        overlap=settings.overlap,
        min_tissue=settings.min_tissue,
    )
    _require_tissue(slide, grid, settings)
    return grid, tissue


def tree_slide(slide: Slide, settings: EmbedSettings, slide_id: str | None = None) -> tuple[TileTree, TissueMask]:
    """Find tissue and lay the quadtree of the settings' ``levels`` over it.

    Raises:
        TooCoarseError: the slide is more than four times as coarse as its finest tiles; names it and both pixel sizes.
        AnnotationError: there is a folder of masks, and none in it that fits the slide.
        NoTissueError: no tile of the coarsest level holds enough tissue; names the slide.
    """
    assert settings.levels is not None
    _require_detail(slide, settings)
    tissue = settings.find_tissue(slide, slide_id)
    tree = TileTree.cover(
        slide,
        tissue,
        tile_size=settings.tile_size,
        target_mpp=settings.target_mpp,
        levels=settings.levels,
        min_tissue=settings.min_tissue,
    )
    _require_tissue(slide, tree.grids[0], settings)
    return tree, tissue


def _require_detail(slide: Slide, settings: EmbedSettings) -> None:
    least = slide.mpp / _MOST_ENLARGED
    if least > settings.target_mpp:
        raise TooCoarseError(
            f"slide '{slide.path}': its finest level has {slide.mpp:g} µm per pixel, too coarse for tiles at "
            f"{settings.target_mpp:g} (a thumbnail?); give the whole slide, --mpp if the file's pixel size is wrong, "
            f"or --target-mpp {math.ceil(100 * least) / 100:g} or more"
        )


def _require_tissue(slide: Slide, grid: TileGrid, settings: EmbedSettings) -> None:
    if len(grid) == 0:
        raise NoTissueError(
            f"slide '{slide.path}': no tissue (no tile of {grid.tile_size} px at {grid.target_mpp:g} mpp has "
            f"{settings.min_tissue:.0%} of it); look at the slide, or change the tissue settings"
            + ("" if settings.levels is None else " or take fewer levels")
        )


def embed_slide(
    slide: Slide,
    grid: TileGrid,
    encoder: Encoder,
    *,
    batch_size: int = 64,
    device: str = "cpu",
    decoder: Decoder = "exact",
) -> Generator[Tensor, None, None]:
    """Yield the features of every tile of ``grid``, in grid order; tiles are read ahead of the encoder.

    Of the tiles of a batch that lie beyond the slide, all white, the encoder sees one.

    Args:
        slide: the open slide.
        grid: the tiles to read, ``n`` of them.
        encoder: maps tiles ``[b, 3, s, s]`` (uint8, RGB) to features ``[b, d]`` or ``[b, d, h, w]``.
        batch_size: ``b``; the last batch may be smaller.
        device: where tiles are wanted; the encoder's.
        decoder: how stored tiles become pixels, see ``slides.stream_tiles``.

    Yields:
        Features of up to ``batch_size`` tiles, float16, on the encoder's device.

    Raises:
        SlideReadError: a tile cannot be decoded; names the slide and the tile's level-0 position.
    """
    start, inside = 0, grid.inside
    with closing(stream_tiles(slide, grid, batch_size=batch_size, device=device, decoder=decoder)) as stream:
        first = list(islice(stream, 1))  # decoded while another slide has the encoder
        with encoding():
            for tiles in chain(_drained(first), stream):
                seen, place = _without_repeated(inside[start : start + len(tiles)])
                yield encoder(tiles) if len(seen) == len(tiles) else encoder(tiles[seen])[place]
                start += len(tiles)
                tell_watcher(start, len(grid))
                del tiles  # its memory is used again


def _drained(items: list[Tensor]) -> Iterator[Tensor]:
    while items:
        yield items.pop(0)


def on_host(batches: Iterable[Tensor]) -> Iterator[np.ndarray]:
    """The features as arrays; those of a GPU through pinned memory, a batch late, so that nobody waits for them."""
    import torch

    landing: deque[tuple[torch.cuda.Event, Tensor]] = deque()
    for features in batches:
        if features.device.type != "cuda":
            yield features.cpu().numpy()
            continue
        landed = torch.empty_like(features, device="cpu", pin_memory=True)
        landed.copy_(features, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(features.device))
        landing.append((event, landed))
        if len(landing) > 1:
            yield _landed(*landing.popleft())
    while landing:
        yield _landed(*landing.popleft())


def _landed(event: torch.cuda.Event, features: Tensor) -> np.ndarray:
    event.synchronize()
    return features.numpy()


def _without_repeated(inside: np.ndarray) -> tuple[Tensor, Tensor]:
    """Rows of a batch that differ, all inside and the first outside, and where each row is among them."""
    import torch

    is_seen = inside | (np.cumsum(~inside) == 1)
    place = np.cumsum(is_seen) - 1
    if not inside.all():
        place[~inside] = place[np.argmin(inside)]
    return torch.from_numpy(np.flatnonzero(is_seen)), torch.from_numpy(place)
