"""A tile's small picture as it is, for networks that look at pixels themselves."""

from __future__ import annotations

from torch import Tensor, nn

TILE_PIXELS_VERSION = "tile_pixels/1"


class TilePixels(nn.Module):
    """The pixels themselves, from -0.5 to 0.5; no weights.

    Bags of it, of tiles of 16 px at 8 micrometres a pixel, lie on the grid of tiles of 256 px at 0.5: they hold what
    :class:`monai_mil.networks.LIPN` screens them by.

    Args:
        spatial: give the map of pixels, not one row of channels.
    """

    def __init__(self, spatial: bool) -> None:
        super().__init__()
        self.spatial = spatial

    def forward(self, tiles: Tensor) -> Tensor:
        """Prepared tiles ``[b, 3, s, s]`` as ``[b, 3 s^2]``, spatial ``[b, s, s, 3]``."""
        return tiles.permute(0, 2, 3, 1) if self.spatial else tiles.flatten(1)
