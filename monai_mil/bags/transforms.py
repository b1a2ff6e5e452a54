"""Dictionary transforms that bring bags into MONAI's pipelines."""

from __future__ import annotations

import logging
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
from monai_mil.bags.scan_preset import find_preset, same_but_statistics
from monai_mil.errors import BagError, NoTissueError
from monai_mil.scans import SlicePreset

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder

logger = logging.getLogger(__name__)

_PER_INSTANCE = ("coords", "positions_mm", "instance_labels")


class LoadBagd(MapTransform):
    """Replace the path of a bag file by its features and check that they are what the network expects.

    The features become a float32 ``MetaTensor`` ``[d, n]``, or ``[d, n, h, w]`` of a spatial bag, whose ``meta`` holds
    the frame (``slide_id``, ``slide_path``, ``mpp``, ``level0_size``, ``tile_size_level0``, ...; NaN or empty where the
    file does not say). ``coords`` (int64 ``[n, 2]``) is set beside it. For a scan ``meta["scan_frame"]`` is the JSON of
    its ``ScanFrame`` (``""`` for a slide) and ``positions_mm`` (float32 ``[n]``) is set too; ``instance_labels``
    (int64 ``[n]``) where the file holds them.

    Args:
        keys: keys of the paths.
        width: number of feature channels the network takes; None for any.
        encoder: name of the encoder the network was trained with; files that name none are taken.
        preset: name or ``preset.json`` of the slice preset the network was trained with; files that name none are
            taken. A name whose statistics are a training split's is compared without them: give the file.
        extras: further numeric datasets of the file to set.
        allow_missing_keys: skip absent keys.

    Raises:
        BagError: the file is unreadable or empty, of another width, encoder or preset, or holds NaN; names the file.
        SettingsError: the preset is unknown.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        width: int | None = None,
        encoder: str | None = None,
        extras: Sequence[str] = (),
        allow_missing_keys: bool = False,
        *,
        preset: str | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.width = width
        self.encoder = encoder
        self.preset = None if preset is None else find_preset(preset)
        self.extras = tuple(extras)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load ``data[key]``; the input dictionary is left as it is."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            with BagFile(loaded[key]) as bag:
                self._check(bag)
                loaded[key] = _bag_tensor(bag.path, torch.from_numpy(bag.features()), bag.info)
                loaded.update(_places(bag.coords, bag.info))
                names = {*self.extras, *({"instance_labels"} & set(bag.extras))}
                loaded |= {name: torch.from_numpy(bag.extra(name)) for name in sorted(names)}
        return loaded

    def _check(self, bag: BagFile) -> None:
        if bag.n == 0:
            raise NoTissueError(f"bag '{bag.path}': no instances; the slide had no tissue, leave it out of the cohort")
        if self.width is not None and bag.width != self.width:
            raise BagError(
                f"bag '{bag.path}': {bag.width} feature channels (encoder {bag.info.encoder}), the network takes "
                f"{self.width}; embed with the network's encoder"
            )
        if self.encoder is not None and bag.info.encoder not in (None, self.encoder):
            raise BagError(
                f"bag '{bag.path}': made by encoder '{bag.info.encoder}', the network was trained with "
                f"'{self.encoder}'; embed with that one"
            )
        if self.preset is not None and bag.info.preset is not None:
            self._check_preset(bag, self.preset, SlicePreset.from_record(bag.info.preset))

    @staticmethod
    def _check_preset(bag: BagFile, wanted: SlicePreset, found: SlicePreset) -> None:
        same = same_but_statistics(wanted, found) if wanted.mean is None else wanted == found
        if not same:
            detail = " with other windows or statistics" if found.name == wanted.name else ""
            raise BagError(
                f"bag '{bag.path}': made with slice preset '{found.name}'{detail}, the network was trained with "
                f"'{wanted.name}'; embed the scans with that one"
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
        NoTissueError: the slide has no tissue.
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
            embedded.update(_places(grid.coords, info))
        return embedded


class EmbedScand(MapTransform):
    """Replace the path of a scan by the features of its slices, in memory; the outcome is as ``LoadBagd``'s.

    A series is chosen by the item's ``series_uid`` where it has one that is not empty; the scan is named by the item's
    ``scan_id`` or ``slide_id``. What the reader repaired or assumed is logged.

    Args:
        keys: keys of the paths.
        encoder: an encoder or its name.
        preset: how slices become the encoder's input: a name, ``"center/width"`` or the path of a ``preset.json``.
        series_uid: the series to take where a folder holds several and the item does not say.
        allow_gaps: take scans that lack slices.
        chunk: slices a step.
        device: where the slices are encoded.
        allow_missing_keys: skip absent keys.

    Raises:
        ScanReadError: the scan cannot be read; names it.
        SettingsError: the preset is unknown, has no statistics or does not fit the encoder.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        encoder: str | Encoder = "ct_texture",
        preset: str = "chest_rsna",
        *,
        series_uid: str | None = None,
        allow_gaps: bool = False,
        chunk: int = 64,
        device: str = "cpu",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        from monai_mil.bags.embed_ct import ScanSettings, check_preset
        from monai_mil.encoders import get_encoder

        self.encoder = get_encoder(encoder, device=device) if isinstance(encoder, str) else encoder
        self.settings = ScanSettings(find_preset(preset), allow_gaps)
        check_preset(self.settings.preset, self.encoder)
        self.series_uid = series_uid
        self.chunk = chunk

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Embed the scan ``data[key]``; the input dictionary is left as it is."""
        from monai_mil.bags.embed_ct import embed_scan, slice_coords
        from monai_mil.scans import load_scan

        embedded = dict(data)
        for key in self.key_iterator(embedded):
            series_uid = embedded.get("series_uid") or self.series_uid
            scan = load_scan(embedded[key], series_uid=series_uid, allow_gaps=self.settings.allow_gaps)
            chunks = embed_scan(scan, self.encoder, self.settings.preset, chunk=self.chunk)
            features = torch.cat([part.cpu() for part in chunks])
            name = embedded.get("scan_id") or embedded.get("slide_id") or scan.scan_id
            for remark in scan.remarks:
                logger.info("scan '%s': %s", name, remark)
            info = self.settings.info(scan.frame, self.encoder, name)
            embedded[key] = _bag_tensor(str(embedded[key]), features, info)
            embedded.update(_places(slice_coords(len(scan)), info))
        return embedded


class SampleInstancesd(Randomizable, MapTransform):
    """Keep a random subset of a bag's instances, in their order; smaller bags stay whole.

    ``coords``, ``positions_mm`` and ``instance_labels`` follow the first key. Seed it by ``set_random_state`` or
    MONAI's ``set_determinism``.

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


def _places(coords: np.ndarray, info: BagInfo) -> dict[str, Tensor]:
    """Where the instances lie: ``coords``, and ``positions_mm`` of a scan's slices."""
    places = {"coords": torch.from_numpy(coords)}
    if info.scan is not None:
        places["positions_mm"] = torch.from_numpy(info.scan.positions_mm).float()
    return places


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
        "scan_frame": "" if info.scan is None else info.scan.to_json(),
    }
    return MetaTensor(features.movedim(0, 1), meta=meta)
