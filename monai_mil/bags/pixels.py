"""Tiles' small pictures beside their features."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform

from monai_mil.bags.file import BagFile
from monai_mil.errors import BagError


class PixelsAsFeaturesd(MapTransform):
    """Set the pictures of tiles at low magnification behind their features: ``[d, n]`` to ``[d + 3 s^2, n]``.

    They are bags of the encoder ``tile_pixels`` of the same slides, cut on the same grid.

    Args:
        keys: keys of bags ``[d, n]`` that ``LoadBagd`` has loaded, with ``coords`` ``[n, 2]`` beside them.
        folder: of the pictures' bags, ``<slide_id>.h5``.
        allow_missing_keys: skip absent keys.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.bags import LoadBagd, PixelsAsFeaturesd
        >>> from monai_mil.embedding import embed_cohort
        >>> from monai_mil.slides import write_pyramid
        >>> (folder / "slides").mkdir()
        >>> write_pyramid(folder / "slides" / "S-1.tif", np.full((1024, 1024, 3), (180, 60, 140), np.uint8), mpp=0.5)
        >>> for encoder in ("texture", "tile_pixels"):
        ...     _ = embed_cohort(folder / "slides", folder / encoder, encoder)
        >>> item = LoadBagd("image")({"image": folder / "texture" / "S-1.h5"})
        >>> list(PixelsAsFeaturesd("image", folder / "tile_pixels")(item)["image"].shape)
        [844, 16]
    """

    def __init__(self, keys: KeysCollection, folder: str | Path, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.folder = Path(folder)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Extend ``data[key]``; the input dictionary is left as it is.

        Raises:
            BagError: the pictures are missing, of another encoder, or of other tiles.
        """
        extended = dict(data)
        for key in self.key_iterator(extended):
            image = extended[key]
            meta = getattr(image, "meta", {})
            path = self.folder / f"{meta.get('slide_id', '')}.h5"
            with BagFile(path, encoder="tile_pixels") as bag:
                if bag.info.encoder != "tile_pixels":
                    raise BagError(f"bag '{path}': of encoder '{bag.info.encoder}', where pixels are wanted")
                if not np.array_equal(bag.coords, np.asarray(extended["coords"])):
                    raise BagError(
                        f"bag '{path}': holds other tiles than '{meta.get('filename_or_obj', key)}'; embed both with "
                        "the same tissue settings, and pictures with tiles of the same size in micrometres"
                    )
                pictures = torch.from_numpy(np.asarray(bag.features()))
            rows = torch.as_tensor(image)
            rows = torch.cat([rows, pictures.T.to(rows)])
            extended[key] = MetaTensor(rows, meta=meta) if isinstance(image, MetaTensor) else rows
        return extended
