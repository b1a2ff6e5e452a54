"""Inference on a slide whose coarse tiles are all read, and of the finer ones only those that the network asks for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from monai.config import KeysCollection
from torch import Tensor, nn

from monai_mil.bags import BagInfo
from monai_mil.embedding.slide import EmbedSettings, tree_slide
from monai_mil.embedding.stream_slide import SlideFeatures, StreamSlided
from monai_mil.slides import Slide

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder


class DescendSlided(StreamSlided):
    """Replace the path of a slide by the answer of a network that reads it coarsely and asks for finer tiles itself.

    The tiles are the quadtree that ``monai-mil embed --levels`` stores, but only those that the network asks for are
    read and encoded. The item becomes as ``StreamSlided``'s, with ``coords`` (int64 ``[N, 2]``), ``inside`` (bool
    ``[N]``) and ``tissue_fraction`` (float32 ``[N]``) of the tiles of all levels in ``LoadTreed``'s order, and the
    finest level's frame.

    Args:
        keys: keys of the paths.
        encoder: an encoder or its name.
        network: has ``descend``, as HAGMIL. It is given one :class:`TreeFeatures` a level, coarsest first, and returns
            its output for a batch of one bag. It answers as in evaluation, with the weights it has when a slide is
            read.
        levels: number of levels.
        settings: the further arguments of :class:`EmbedSlided`; ``target_mpp`` is the finest level's.

    Raises:
        SettingsError: the network cannot descend, there is no such tree, or the encoder gives token maps.
        SlideReadError: the slide or a tile cannot be read; names it.
        NoTissueError: the slide has no tissue.
        EncoderError: a feature is not finite; names slide and tile.
    """

    _method: ClassVar[str] = "descend"
    _without: ClassVar[str] = "reads all tiles of one level; take StreamSlided or EmbedSlided, or a network with"
    _takes_tokens: ClassVar[bool] = False

    def __init__(
        self,
        keys: KeysCollection = "image",
        encoder: str | Encoder = "texture",
        *,
        network: nn.Module,
        levels: int = 3,
        **settings: Any,
    ) -> None:
        super().__init__(keys, encoder, network=network, **settings)
        self.settings = replace(self.settings, levels=levels)

    def _answer(
        self, slide: Slide, name: str, settings: EmbedSettings
    ) -> tuple[BagInfo, dict[str, Tensor], dict[str, Tensor]]:
        tree, _ = tree_slide(slide, settings, name)
        sources = [TreeFeatures(self._features(slide, grid)) for grid in tree.grids]
        info = settings.info(slide, tree.grids[-1], self.encoder, name, level=0)
        where = {
            name: torch.from_numpy(np.concatenate([getattr(grid, name) for grid in tree.grids]))
            for name in ("coords", "inside", "tissue_fraction")
        }
        return info, where, self.network.descend(sources)


@dataclass(frozen=True, eq=False)
class TreeFeatures:
    """The features of one level's tiles, read and encoded when asked for; its length is the number of tiles.

    Attributes:
        level: all tiles of the level.
    """

    level: SlideFeatures

    def __len__(self) -> int:
        return len(self.level.grid)

    def __call__(self, rows: Tensor) -> Tensor:
        """Read and encode some tiles, in the grid's order so that no stored tile is decoded twice.

        Args:
            rows: their numbers, int64 ``[m]``, at least one.

        Returns:
            Features ``[m, d]`` in the order asked for, float16, on the encoder's device.
        """
        wanted, place = rows.cpu().unique(return_inverse=True)
        part = replace(self.level, grid=self.level.grid.take(wanted.numpy()))
        features = torch.cat(list(part))
        return features[place.to(features.device)]
