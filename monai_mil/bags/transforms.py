"""Dictionary transforms that bring bags into MONAI's pipelines."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform, Randomizable
from torch import Tensor

from monai_mil.bags.info import BagInfo
from monai_mil.bags.instances import per_instance
from monai_mil.bags.storage import first_bad_row
from monai_mil.bags.tokens import token_mask
from monai_mil.errors import BagError
from monai_mil.scans import ScanFrame

logger = logging.getLogger(__name__)


class SampleInstancesd(Randomizable, MapTransform):
    """Keep a random subset of a bag's instances, in their order; smaller bags stay whole.

    What is known of every instance (``coords``, ``instance_labels`` ...) follows. Packed bags of several magnifications
    (``LoadTreed``) would be no quadtrees any more. Seed it by ``set_random_state`` or MONAI's
    ``set_determinism``.

    Args:
        keys: keys of bags ``[d, n, ...]`` of equal ``n``.
        num_instances: most instances to keep.
        allow_missing_keys: skip absent keys.

    Raises:
        ValueError: a key that ``networks.KEYS`` does not list has a row for every instance.

    Examples:
        >>> import torch
        >>> from monai_mil.bags import SampleInstancesd
        >>> sample = SampleInstancesd("image", num_instances=4).set_random_state(seed=0)
        >>> item = sample({"image": torch.zeros(8, 100), "coords": torch.zeros(100, 2)})
        >>> list(item["image"].shape), list(item["coords"].shape)
        ([8, 4], [4, 2])
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
        for key, axis in per_instance(data, n, but=self.keys).items():
            sampled[key] = torch.as_tensor(sampled[key]).movedim(axis, 0)[chosen].movedim(0, axis)
        return sampled


class PositionsAsFeaturesd(MapTransform):
    """Set where the instances lie behind their features, for networks of neighbours: ``[d, n]`` to ``[d + 2, n]``.

    The last two rows are column and row of a tile in the grid of tiles, counted from the leftmost and the topmost; of a
    slice its index and 0. A grid's step is the edge of a tile, or, where a bag does not say it, the smallest distance
    of two of its coordinates. Slides of one patient lie side by side, further apart than neighbours.

    Args:
        keys: keys of bags ``[d, n]``; ``coords`` ``[n, 2]`` must be there.
        allow_missing_keys: skip absent keys.

    Examples:
        >>> import torch
        >>> from monai_mil.bags import PositionsAsFeaturesd
        >>> item = {"image": torch.zeros(8, 3), "coords": torch.tensor([[512, 256], [768, 256], [512, 512]])}
        >>> PositionsAsFeaturesd("image")(item)["image"][8:]
        tensor([[0., 1., 0.],
                [0., 0., 1.]])
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Extend ``data[key]``; the input dictionary is left as it is.

        Raises:
            BagError: the bag has no coordinates.
        """
        extended = dict(data)
        for key in self.key_iterator(extended):
            image = extended[key]
            meta = getattr(image, "meta", {})
            if "coords" not in extended:
                raise BagError(f"bag '{meta.get('filename_or_obj', key)}' has no coords, and this method needs them")
            coords = torch.as_tensor(extended["coords"])
            place = _grid_places(coords.double(), float(meta.get("tile_size_level0", math.nan)))
            slide = extended.get("slide_index")
            if slide is not None:
                place[:, 0] += torch.as_tensor(slide).double() * (place[:, 0].max() + 2)
            rows = torch.as_tensor(image)
            if not torch.equal(place.to(rows.dtype).double(), place):  # float16 counts to 2048
                rows = rows.float()
            rows = torch.cat([rows, place.T.to(rows)])
            extended[key] = MetaTensor(rows, meta=meta) if isinstance(image, MetaTensor) else rows
        return extended


def _grid_places(coords: Tensor, tile: float) -> Tensor:
    """Column and row of coordinates ``[n, 2]`` in a grid of step ``tile``, NaN where that is to be found."""
    if math.isnan(tile) or tile <= 0:
        steps = torch.cat([axis.unique().diff() for axis in coords.T])
        tile = float(steps.min()) if len(steps) else 1.0
    return ((coords - coords.amin(dim=0)) / tile).round()


def instance_places(coords: np.ndarray, info: BagInfo, grid: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Where the instances lie: ``coords``, ``positions_mm`` of a scan's slices, ``token_mask`` of a slide's tokens.

    The last, bool ``[n, h, w]``, only where the tokens' ``grid`` is given and some lie beyond the slide.
    """
    found = {"coords": torch.from_numpy(coords)}
    positions = info.positions_mm()
    if positions is not None:
        found["positions_mm"] = torch.from_numpy(positions).float()
    elif grid is not None and info.tile_size_level0 is not None and info.level0_size is not None:
        mask = token_mask(coords, info.tile_size_level0, info.level0_size, grid)
        found |= {} if mask is None else {"token_mask": mask}
    return found


def bag_tensor(source: str | os.PathLike[str], features: Tensor, info: BagInfo) -> MetaTensor:
    """Features ``[n, d, ...]`` of any floating type as MONAI's channel-first image with the bag's frame.

    Raises:
        BagError: a feature is NaN or infinite.
    """
    bad = first_bad_row(features.movedim(1, -1))
    if bad is not None:
        raise BagError(f"bag '{source}': the features of instance {bad} are NaN or infinite; embed it again")
    return MetaTensor(features.movedim(0, 1), meta=bag_meta(source, info))


def bag_meta(source: str | os.PathLike[str], info: BagInfo) -> dict[str, Any]:
    """The frame of a bag as the ``meta`` of its image."""
    unknown = math.nan
    return {
        "filename_or_obj": str(source),
        "slide_id": info.slide_id,
        "slide_path": info.slide_path or "",
        "source": info.source or "",
        "series": -1 if info.series is None else info.series,
        "plane": -1 if info.plane is None else info.plane,
        "encoder": info.encoder or "",
        "encoder_digest": info.encoder_digest or "",
        "mpp": unknown if info.mpp is None else info.mpp,
        "target_mpp": unknown if info.target_mpp is None else info.target_mpp,
        "tile_size_level0": unknown if info.tile_size_level0 is None else info.tile_size_level0,
        "level0_size": torch.tensor(info.level0_size or (0, 0)),
        "bounds": torch.tensor(info.bounds or (0, 0, 0, 0)),
        "scan_frame": "" if info.scan is None else info.scan.to_json(),
        "scan_depth": "" if info.depth is None else info.depth.to_json(),
        "scan_lungs": "" if info.lungs is None else info.lungs.to_json(),
        "remarks": "; ".join(info.remarks),
    } | ({} if info.scan is None else _source_grid(info.scan.source))


def _source_grid(source: ScanFrame) -> dict[str, np.ndarray]:
    """The grid of the scan's source, by the names of MONAI's images: columns, rows and slices, RAS+."""
    return {"spatial_shape": np.array(source.shape[::-1]), "original_affine": source.even_affine}
