"""Dictionary transforms that bring bags into MONAI's pipelines."""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform, Randomizable
from torch import Tensor

from monai_mil.bags.file import BagFile
from monai_mil.bags.info import BagInfo
from monai_mil.errors import BagError

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder

_PER_INSTANCE = ("coords", "instance_labels")


class LoadBagd(MapTransform):
    """Replace the path of a bag file by its features and check that they are what the network expects.

    The features become a float32 ``MetaTensor`` ``[d, n]``, or ``[d, n, h, w]`` of a spatial bag, whose ``meta`` holds
    the frame (``slide_id``, ``slide_path``, ``mpp``, ``level0_size``, ``tile_size_level0``, ...; NaN or empty where the
    file does not say). ``coords`` (int64 ``[n, 2]``) is set beside it.

    Args:
        keys: keys of the paths.
        width: number of feature channels the network takes; None for any.
        encoder: name of the encoder the network was trained with; files that name none are taken.
        extras: further numeric datasets of the file to set, for example ``instance_labels``.
        allow_missing_keys: skip absent keys.

    Raises:
        BagError: the file is unreadable or empty, of another width or encoder, or holds NaN; names the file.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        width: int | None = None,
        encoder: str | None = None,
        extras: Sequence[str] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.width = width
        self.encoder = encoder
        self.extras = tuple(extras)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load ``data[key]``; the input dictionary is left as it is."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            with BagFile(loaded[key]) as bag:
                self._check(bag)
                loaded[key] = _bag_tensor(bag.path, torch.from_numpy(bag.features()), bag.info)
                loaded["coords"] = torch.from_numpy(bag.coords)
                loaded |= {name: torch.from_numpy(bag.extra(name)) for name in self.extras}
        return loaded

    def _check(self, bag: BagFile) -> None:
        if bag.n == 0:
            raise BagError(f"bag '{bag.path}': no instances; the slide had no tissue, leave it out of the cohort")
        if self.width is not None and bag.width != self.width:
            raise BagError(
                f"bag '{bag.path}': {bag.width} feature channels (encoder {bag.info.encoder}), the network takes "
                f"{self.width}; embed the slides with the network's encoder"
            )
        if self.encoder is not None and bag.info.encoder not in (None, self.encoder):
            raise BagError(
                f"bag '{bag.path}': made by encoder '{bag.info.encoder}', the network was trained with "
                f"'{self.encoder}'; embed the slides with that one"
            )


class EmbedSlided(MapTransform):
    """Replace the path of a slide by the features of its tiles, in memory; the outcome is as ``LoadBagd``'s.

    Args:
        keys: keys of the paths.
        encoder: an encoder or its name.
        mpp: micrometres per pixel of slides that do not say it themselves.
        tile_size: edge of a tile in pixels; default the encoder's.
        target_mpp: micrometres per pixel of the tiles; default the encoder's.
        overlap: overlap of neighbouring tiles in pixels.
        min_tissue: least share of tissue in a tile.
        batch_size: tiles a step.
        device: where the tiles are decoded and encoded.
        allow_missing_keys: skip absent keys.

    Raises:
        SlideReadError: the slide or a tile cannot be read; names it.
        BagError: the slide has no tissue.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        encoder: str | Encoder = "texture",
        *,
        mpp: float | None = None,
        tile_size: int | None = None,
        target_mpp: float | None = None,
        overlap: int = 0,
        min_tissue: float = 0.25,
        batch_size: int = 64,
        device: str = "cpu",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        from monai_mil.bags.embed import EmbedSettings
        from monai_mil.encoders import get_encoder

        self.encoder = get_encoder(encoder, device=device) if isinstance(encoder, str) else encoder
        self.settings = EmbedSettings.for_encoder(
            self.encoder, mpp=mpp, tile_size=tile_size, target_mpp=target_mpp, overlap=overlap, min_tissue=min_tissue
        )
        self.batch_size = batch_size
        self.device = device

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Embed the slide ``data[key]``; the input dictionary is left as it is."""
        from monai_mil.bags.embed import embed_slide, tile_slide
        from monai_mil.slides import open_slide

        embedded = dict(data)
        for key in self.key_iterator(embedded):
            with open_slide(embedded[key], default_mpp=self.settings.mpp) as slide:
                grid, _ = tile_slide(slide, self.settings)
                batches = embed_slide(slide, grid, self.encoder, batch_size=self.batch_size, device=self.device)
                features = torch.cat([batch.cpu() for batch in batches])
                info = self.settings.info(slide, grid, self.encoder)
            embedded[key] = _bag_tensor(info.slide_path or info.slide_id, features, info)
            embedded["coords"] = torch.from_numpy(grid.coords)
        return embedded


class SampleInstancesd(Randomizable, MapTransform):
    """Keep a random subset of a bag's instances, in their order; smaller bags stay whole.

    ``coords`` and ``instance_labels`` follow the first key. Seed it by ``set_random_state`` or MONAI's
    ``set_determinism``.

    Args:
        keys: keys of bags ``[d, n, ...]`` of equal ``n``.
        num_instances: most instances to keep.
        allow_missing_keys: skip absent keys.
    """

    def __init__(
        self, keys: KeysCollection = "image", num_instances: int = 4096, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if num_instances < 1:
            raise ValueError(f"num_instances must be at least 1, not {num_instances}")
        self.num_instances = num_instances

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Sample ``data[key]``; the input dictionary is left as it is."""
        sampled = dict(data)
        n = sampled[self.first_key(sampled)].shape[1]
        if n <= self.num_instances:
            return sampled
        chosen = torch.from_numpy(np.sort(self.R.permutation(n)[: self.num_instances]))
        for key in self.key_iterator(sampled):
            sampled[key] = sampled[key].movedim(1, 0)[chosen].movedim(0, 1)
        for key in _PER_INSTANCE:
            if key in sampled:
                sampled[key] = sampled[key][chosen]
        return sampled


def _bag_tensor(source: str | os.PathLike[str], features: Tensor, info: BagInfo) -> MetaTensor:
    """Features ``[n, d, ...]`` as MONAI's channel-first image with the bag's frame; raises BagError on NaN."""
    features = features.float()
    if not torch.isfinite(features.sum()) and not torch.isfinite(features).all():
        rows = torch.isfinite(features.flatten(1)).all(dim=1).logical_not().nonzero()
        raise BagError(f"bag '{source}': the features of instance {int(rows[0])} are NaN or infinite; embed it again")
    unknown = math.nan
    meta = {
        "filename_or_obj": str(source),
        "slide_id": info.slide_id,
        "slide_path": info.slide_path or "",
        "encoder": info.encoder or "",
        "encoder_digest": info.encoder_digest or "",
        "mpp": unknown if info.mpp is None else info.mpp,
        "target_mpp": unknown if info.target_mpp is None else info.target_mpp,
        "tile_size_level0": unknown if info.tile_size_level0 is None else info.tile_size_level0,
        "level0_size": torch.tensor(info.level0_size or (0, 0)),
    }
    return MetaTensor(features.movedim(0, 1), meta=meta)
