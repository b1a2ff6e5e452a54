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
    """Features ``[n, d, ...]`` as MONAI's channel-first image with the bag's frame; raises BagError on NaN."""
    features = features.float()
    if not torch.isfinite(features.sum()) and not torch.isfinite(features).all():
        rows = torch.isfinite(features.flatten(1)).all(dim=1).logical_not().nonzero()
        raise BagError(f"bag '{source}': the features of instance {int(rows[0])} are NaN or infinite; embed it again")
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
