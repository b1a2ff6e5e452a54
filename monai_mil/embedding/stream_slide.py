"""Inference on a slide whose features are pooled as they are encoded and never kept."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from monai.config import KeysCollection
from torch import Tensor, nn

from monai_mil.bags import BagInfo, bag_tensor, instance_places, join_bags
from monai_mil.embedding.slide import EmbedSettings, embed_slide, tile_slide
from monai_mil.embedding.transforms import EmbedSlided
from monai_mil.errors import BagError, EncoderError, SettingsError
from monai_mil.slides import Decoder, Slide, TileGrid

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder

logger = logging.getLogger(__name__)


class StreamSlided(EmbedSlided):
    """Replace the path of a slide by the network's answer: tiles are read, encoded, pooled and forgotten.

    Memory holds a few batches of tiles and the network's output, whatever the slide's size. The output becomes the
    item's ``streamed``, without the axis of the batch: ``training.prepare_streamed_batch`` and
    ``training.StreamedInferer`` take it through a MONAI evaluator, one slide a batch. The image is a ``MetaTensor``
    ``[0, n]`` or ``[0, n, h, w]`` without a channel, with the meta data that ``LoadBagd`` gives; ``coords``, and
    ``token_mask`` where tokens lie beyond the slide, are set beside it.

    Args:
        keys: keys of the paths.
        encoder: an encoder or its name; spatial for a network that takes tokens.
        network: has ``pool_chunks``, as INSIGHT and most others. It answers as in evaluation, with the weights it has
            when a slide is read.
        settings: the further arguments of :class:`EmbedSlided`.

    Raises:
        SettingsError: the network cannot take a bag in chunks.
        SlideReadError: the slide or a tile cannot be read; names it.
        NoTissueError: the slide has no tissue.
        EncoderError: a feature is not finite; names slide and tile.
    """

    _method: ClassVar[str] = "pool_chunks"
    _without: ClassVar[str] = "needs all tiles at once and cannot be streamed; take EmbedSlided, or a network with"
    _takes_tokens: ClassVar[bool] = True

    def __init__(
        self, keys: KeysCollection = "image", encoder: str | Encoder = "texture", *, network: nn.Module, **settings: Any
    ) -> None:
        super().__init__(keys, encoder, **settings)
        if not hasattr(network, self._method):
            raise SettingsError(f"{type(network).__name__} {self._without} {self._method}")
        if not self._takes_tokens and self.encoder.grid is not None:
            raise SettingsError(f"encoder '{self.encoder.name}' gives token maps; take it without spatial")
        self.network: Any = network

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Answer for the slide ``data[key]``; the input dictionary is left as it is."""
        from monai.networks.utils import eval_mode

        streamed = dict(data)
        for key in self.key_iterator(streamed):
            if isinstance(streamed[key], list):
                streamed |= self._only_slide(streamed, key)
                continue
            settings = self._settings(streamed)
            with settings.open(streamed[key]) as slide, eval_mode(self.network):
                for remark in slide.remarks:
                    logger.info(remark)
                info, where, output = self._answer(slide, streamed.get("slide_id") or slide.slide_id, settings)
            streamed.update({**where, "streamed": {name: value[0] for name, value in output.items()}})
            nothing = torch.empty(len(where["coords"]), 0, *(self.encoder.grid or ()))
            streamed[key] = bag_tensor(str(info.slide_path), nothing, info)
        return streamed

    def _only_slide(self, patient: Mapping[Hashable, Any], key: Hashable) -> dict[Hashable, Any]:
        """The answer for a patient's only slide, as the patient's."""
        slides = patient[key]
        if len(slides) > 1:
            names = ", ".join(str(slide["slide_id"]) for slide in slides)
            raise BagError(
                f"patient '{patient['patient_id']}': slides {names} are to be one bag, and a network that answers "
                "while a slide is read knows one alone; embed them with 'monai-mil embed' and predict from their bags"
            )
        read = self(slides[0])
        return join_bags({**patient, key: [read]}, key, dict) | {"streamed": read["streamed"]}

    def _answer(
        self, slide: Slide, name: str, settings: EmbedSettings
    ) -> tuple[BagInfo, dict[str, Tensor], dict[str, Tensor]]:
        """The slide's frame, where its tiles lie, and the network's output."""
        grid, _ = tile_slide(slide, settings, name)
        info = settings.info(slide, grid, self.encoder, name)
        where = instance_places(grid.coords, info, self.encoder.grid)
        mask = {"mask": where["token_mask"]} if "token_mask" in where else {}
        return info, where, self.network.pool_chunks(self._features(slide, grid), **mask)

    def _features(self, slide: Slide, grid: TileGrid) -> SlideFeatures:
        return SlideFeatures(slide, grid, self.encoder, self.batch_size, self.device, self.settings.decoder)


@dataclass(frozen=True, eq=False)
class SlideFeatures:
    """The features of a slide's tiles, batch by batch; every iteration reads and encodes the slide anew.

    Networks that see a bag twice (DSMIL) iterate twice.
    """

    slide: Slide
    grid: TileGrid
    encoder: Encoder
    batch_size: int
    device: str
    decoder: Decoder

    def __iter__(self) -> Iterator[Tensor]:
        done = 0
        batches = embed_slide(
            self.slide,
            self.grid,
            self.encoder,
            batch_size=self.batch_size,
            device=self.device,
            decoder=self.decoder,
        )
        for features in batches:
            if not torch.isfinite(features.sum(dtype=torch.float32)):
                self._refuse(done, features)
            yield features
            done += len(features)

    def _refuse(self, done: int, features: Tensor) -> None:
        finite = torch.isfinite(features.flatten(1)).all(dim=1)
        x, y = self.grid.coords[done + int(torch.nonzero(~finite)[0])].tolist()
        raise EncoderError(
            f"slide '{self.slide.path}': encoder '{self.encoder.name}' gives NaN or infinite features for the tile at "
            f"level-0 position ({x}, {y}); check its weights and number type"
        )
