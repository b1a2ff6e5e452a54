"""From one slide to its features: the settings, the tiles they give, and the encoder's answer for every tile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from monai_mil.bags.info import BagInfo
from monai_mil.errors import NoTissueError, SettingsError
from monai_mil.slides import Slide, TileGrid, TissueMask, TissueSettings, segment_tissue, stream_tiles

if TYPE_CHECKING:
    from torch import Tensor

    from monai_mil.encoders import Encoder


@dataclass(frozen=True)
class EmbedSettings:
    """How slides are cut into tiles.

    Attributes:
        tile_size: edge of a tile in pixels at ``target_mpp``.
        target_mpp: micrometres per pixel of the tiles.
        overlap: overlap of neighbouring tiles in pixels at ``target_mpp``.
        min_tissue: least share of tissue in a tile.
        tissue: how tissue is found.
        mpp: micrometres per level-0 pixel for slides that do not say it themselves.

    Raises:
        SettingsError: a value fits no slide.
    """

    tile_size: int
    target_mpp: float
    overlap: int = 0
    min_tissue: float = 0.25
    tissue: TissueSettings = field(default_factory=TissueSettings)
    mpp: float | None = None

    def __post_init__(self) -> None:
        _must(self.tile_size >= 1, "tile size", self.tile_size, "at least 1 px")
        _must(self.target_mpp > 0, "target mpp", self.target_mpp, "above 0 µm a pixel")
        _must(0 <= self.overlap < self.tile_size, "overlap", self.overlap, f"from 0 to {self.tile_size - 1} px")
        _must(0 <= self.min_tissue <= 1, "min tissue", self.min_tissue, "a fraction from 0 to 1")
        _must(self.mpp is None or self.mpp > 0, "mpp", self.mpp, "above 0 µm a pixel")

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

    def tissue_record(self) -> dict[str, Any]:
        """What the bag file keeps of the tissue settings; plain JSON values."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self.tissue)))
        return record | {"min_tissue": self.min_tissue}

    def info(self, slide: Slide, grid: TileGrid, encoder: Encoder, slide_id: str | None = None) -> BagInfo:
        """The frame of the bag that these settings give for a slide."""
        return BagInfo(
            slide_id=slide_id or slide.slide_id,
            slide_path=str(slide.path.absolute()),
            encoder=encoder.name,
            encoder_digest=encoder.digest,
            tile_size=self.tile_size,
            tile_size_level0=float(grid.tile_size_level0),
            overlap=self.overlap,
            target_mpp=self.target_mpp,
            level0_size=slide.size,
            mpp=slide.mpp,
            reader=slide.reader,
            tissue=self.tissue_record(),
        )


def _must(true: bool, setting: str, value: object, allowed: str) -> None:
    """Raise a SettingsError unless ``true``."""
    if not true:
        raise SettingsError(f"{setting} {value}: must be {allowed}")


def tile_slide(slide: Slide, settings: EmbedSettings) -> tuple[TileGrid, TissueMask]:
    """Find tissue and lay the tile grid over it.

    Raises:
        NoTissueError: no tile holds enough tissue; names the slide.
    """
    tissue = segment_tissue(slide, settings.tissue)
    grid = TileGrid.cover(
        slide,
        tissue,
        tile_size=settings.tile_size,
        target_mpp=settings.target_mpp,
        overlap=settings.overlap,
        min_tissue=settings.min_tissue,
    )
    if len(grid) == 0:
        raise NoTissueError(
            f"slide '{slide.path}': no tissue (no tile has {settings.min_tissue:.0%} of it); "
            "look at the slide, or change the tissue settings"
        )
    return grid, tissue


def embed_slide(
    slide: Slide, grid: TileGrid, encoder: Encoder, *, batch_size: int = 64, device: str = "cpu"
) -> Iterator[Tensor]:
    """Yield the features of every tile of ``grid``, in grid order; tiles are read ahead of the encoder.

    Args:
        slide: the open slide.
        grid: the tiles to read, ``n`` of them.
        encoder: maps tiles ``[b, 3, s, s]`` (uint8, RGB) to features ``[b, d]`` or ``[b, d, h, w]``.
        batch_size: ``b``; the last batch may be smaller.
        device: where tiles are decoded to; the encoder's.

    Yields:
        Features of up to ``batch_size`` tiles, float16, on the encoder's device.

    Raises:
        SlideReadError: a tile cannot be decoded; names the slide and the tile's level-0 position.
    """
    for tiles in stream_tiles(slide, grid, batch_size=batch_size, device=device):
        yield encoder(tiles)
