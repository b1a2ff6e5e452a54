"""Inference on a slide whose tiles are seen in small first, and encoded only where a network keeps them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from monai_mil.bags import BagInfo, instance_places
from monai_mil.embedding.descend_slide import TreeFeatures
from monai_mil.embedding.slide import EmbedSettings, tile_slide
from monai_mil.embedding.stream_slide import StreamSlided
from monai_mil.slides import Slide

logger = logging.getLogger(__name__)


class ScreenSlided(StreamSlided):
    """Replace the path of a slide by the answer of a network that sees every tile in small and asks for some of them.

    Every tile of the grid is read at the magnification at which it is ``side`` pixels wide; only those that the network
    keeps are then read and encoded at the grid's own. How many those are is logged and becomes ``tiles_read``, the item
    is otherwise ``StreamSlided``'s.

    Args:
        keys: keys of the paths.
        encoder: an encoder or its name.
        network: has ``answer_screened`` and ``side``, as LIPN. It answers as in evaluation, with the weights it has
            when a slide is read.
        settings: the further arguments of :class:`EmbedSlided`.

    Raises:
        SettingsError: the network cannot screen, or the encoder gives token maps.
        SlideReadError: the slide or a tile cannot be read; names it.
        NoTissueError: the slide has no tissue.
        EncoderError: a feature is not finite; names slide and tile.
    """

    _method: ClassVar[str] = "answer_screened"
    _without: ClassVar[str] = "does not screen tiles; take StreamSlided or EmbedSlided, or a network with"
    _takes_tokens: ClassVar[bool] = False

    def _answer(
        self, slide: Slide, name: str, settings: EmbedSettings
    ) -> tuple[BagInfo, dict[str, Tensor], dict[str, Tensor]]:
        from monai_mil.encoders import get_encoder

        grid, _ = tile_slide(slide, settings, name)
        side = self.network.side
        small = replace(grid, tile_size=side, target_mpp=grid.target_mpp * grid.tile_size / side)
        pictures = replace(self._features(slide, small), encoder=get_encoder("tile_pixels", device=self.device))
        output, kept = self.network.answer_screened(pictures, TreeFeatures(self._features(slide, grid)))
        logger.info("slide '%s': %d of %d tiles are read", name, len(kept), len(grid))
        info = settings.info(slide, grid, self.encoder, name)
        return info, {**instance_places(grid.coords, info), "tiles_read": torch.tensor(len(kept))}, output
