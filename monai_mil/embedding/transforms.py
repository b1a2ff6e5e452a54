"""Dictionary transforms that turn a slide or a scan into a bag, in memory."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform
from monai.utils.enums import SpaceKeys

from monai_mil.bags import bag_tensor, instance_places, join_bags
from monai_mil.errors import ScanReadError
from monai_mil.scans import LPS_TO_RAS, Scan, find_preset, load_scan, oriented, volume_scan

if TYPE_CHECKING:
    from monai_mil.embedding.slide import EmbedSettings
    from monai_mil.encoders import Encoder
    from monai_mil.slides import Decoder, TissueSettings

logger = logging.getLogger(__name__)

_SUFFIX = re.compile(r"\.(nii(\.gz)?|mha|mhd|nrrd|nhdr)$", re.IGNORECASE)


class EmbedSlided(MapTransform):
    """Replace the path of a slide by the features of its tiles, in memory; the outcome is as ``LoadBagd``'s.

    The item's ``mpp``, where it has one above 0, wins over the setting; its ``slide_id`` names the slide's mask and
    bag. What the reader chose or assumed is logged.

    Args:
        keys: keys of the paths.
        encoder: an encoder or its name.
        mpp: micrometres per level-0 pixel, whatever the slides say.
        tile_size: edge of a tile in pixels; default the encoder's.
        target_mpp: micrometres per pixel of the tiles; default the encoder's.
        overlap: overlap of neighbouring tiles in pixels.
        min_tissue: least share of tissue in a tile.
        tissue: how tissue is found.
        masks: folder of tissue masks to take instead, ``<slide_id>.png`` or ``.geojson`` (see ``slides.read_tissue``).
        series: which image of files that hold several; default the largest.
        plane: which focal plane of files that hold several; default the middle one.
        icc: ``"apply"`` turns pixels into sRGB by the slides' ICC profiles.
        decoder: how stored tiles become pixels, see ``slides.stream_tiles``.
        batch_size: tiles a step.
        device: where the tiles are decoded and encoded.
        allow_missing_keys: skip absent keys.

    Raises:
        SlideReadError: the slide or a tile cannot be read; names it.
        NoTissueError: the slide has no tissue.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.embedding import EmbedSlided
        >>> from monai_mil.slides import write_pyramid
        >>> write_pyramid(folder / "S-1.tif", np.full((512, 512, 3), (180, 60, 140), np.uint8), mpp=0.5)
        >>> item = EmbedSlided("image", "texture")({"image": folder / "S-1.tif"})
        >>> list(item["image"].shape), item["coords"].tolist()
        ([76, 4], [[0, 0], [256, 0], [0, 256], [256, 256]])
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
        tissue: TissueSettings | None = None,
        masks: str | None = None,
        series: int | None = None,
        plane: int | None = None,
        icc: Literal["apply"] | None = None,
        decoder: Decoder = "exact",
        batch_size: int = 64,
        device: str = "cpu",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        from monai_mil.embedding import EmbedSettings
        from monai_mil.encoders import get_encoder
        from monai_mil.slides import TissueSettings

        self.encoder = get_encoder(encoder, device=device) if isinstance(encoder, str) else encoder
        self.settings = EmbedSettings.for_encoder(
            self.encoder,
            mpp=mpp,
            tile_size=tile_size,
            target_mpp=target_mpp,
            overlap=overlap,
            min_tissue=min_tissue,
            tissue=tissue or TissueSettings(),
            masks=masks,
            series=series,
            plane=plane,
            icc=icc,
            decoder=decoder,
        )
        self.batch_size = batch_size
        self.device = device

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Embed the slide ``data[key]``; the input dictionary is left as it is."""
        from monai_mil.embedding import embed_slide, tile_slide

        embedded = dict(data)
        for key in self.key_iterator(embedded):
            if isinstance(embedded[key], list):
                embedded |= join_bags(embedded, key, self)
                continue
            settings = self._settings(embedded)
            with settings.open(embedded[key]) as slide:
                for remark in slide.remarks:
                    logger.info(remark)
                name = embedded.get("slide_id") or slide.slide_id
                grid, _ = tile_slide(slide, settings, name)
                batches = embed_slide(
                    slide,
                    grid,
                    self.encoder,
                    batch_size=self.batch_size,
                    device=self.device,
                    decoder=settings.decoder,
                )
                features = torch.cat([batch.cpu() for batch in batches])
                info = settings.info(slide, grid, self.encoder, name)
            embedded[key] = bag_tensor(info.slide_path or info.slide_id, features, info)
            embedded.update(instance_places(grid.coords, info, self.encoder.grid))
        return embedded

    def _settings(self, item: Mapping[Hashable, Any]) -> EmbedSettings:
        """The settings for an item, with its own pixel size where it has one."""
        mpp = item.get("mpp")
        return dataclasses.replace(self.settings, mpp=float(mpp)) if mpp else self.settings


class EmbedScand(MapTransform):
    """Replace a scan by the features of its slices, in memory; the outcome is as ``LoadBagd``'s.

    A scan is given by its path, or itself: a ``Scan``, or MONAI's image of it, a ``MetaTensor`` ``[i, j, k]`` or
    ``[1, i, j, k]`` of Hounsfield units with its affine, as ``LoadImaged`` gives it, in any orientation. In the bag's
    ``meta``, ``spatial_shape`` and ``original_affine`` are the shape and affine (RAS+) of the grid that was given, on
    which :class:`monai_mil.savers.ScanLabelMapd` makes a label map of the network's answer.

    A series is chosen by the item's ``series_uid``, an acquisition in it by its ``acquisition``, where it has one that
    is not empty; the scan is named by the item's ``scan_id`` or ``slide_id``. What the reader repaired or assumed is
    logged.

    Args:
        keys: keys of the scans.
        encoder: an encoder or its name.
        preset: how slices become the encoder's input: a name, ``"center/width"`` or the path of a ``preset.json``.
        series_uid: the series to take where a folder holds several and the item does not say.
        acquisition: likewise the acquisition, phase or pass of a series with several that overlap.
        allow_gaps: take scans that lack slices.
        accept_units: take scans whose values may be no Hounsfield units.
        lungs: blank what is outside the lungs, found by this method (see ``scans.lung_mask``).
        depth: bring every scan to this number of layers; None takes each slice as it is.
        depth_mode: how: ``resize`` or ``middle`` (see ``scans.Depth``).
        chunk: slices a step.
        device: where the slices are encoded.
        allow_missing_keys: skip absent keys.

    Raises:
        ScanReadError: the scan cannot be read; names it.
        NoLungsError: nothing would be left of the scan outside of its lungs.
        SettingsError: the preset is unknown, has no statistics or does not fit the encoder; a package is missing.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        encoder: str | Encoder = "ct_texture",
        preset: str = "chest_rsna",
        *,
        series_uid: str | None = None,
        acquisition: str | None = None,
        allow_gaps: bool = False,
        accept_units: bool = False,
        lungs: Literal["threshold", "lungmask"] | None = None,
        depth: int | None = None,
        depth_mode: Literal["resize", "middle"] = "resize",
        chunk: int = 64,
        device: str = "cpu",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        from monai_mil.embedding import ScanSettings, check_preset
        from monai_mil.encoders import get_encoder

        self.encoder = get_encoder(encoder, device=device) if isinstance(encoder, str) else encoder
        self.settings = ScanSettings(find_preset(preset), allow_gaps, lungs, depth, depth_mode, accept_units)
        check_preset(self.settings.preset, self.encoder)
        self.series_uid = series_uid
        self.acquisition = acquisition
        self.chunk = chunk

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Embed the scan ``data[key]``; the input dictionary is left as it is."""
        from monai_mil.embedding import embed_scan, scan_coords

        embedded, settings = dict(data), self.settings
        for key in self.key_iterator(embedded):
            if isinstance(embedded[key], list):
                embedded |= join_bags(embedded, key, self)
                continue
            scan = self._scan(
                embedded[key],
                embedded.get("series_uid") or self.series_uid,
                embedded.get("acquisition") or self.acquisition,
            )
            settings.check_units(scan)
            name = embedded.get("scan_id") or embedded.get("slide_id") or scan.scan_id
            for remark in scan.remarks:
                logger.info("scan '%s': %s", name, remark)
            info = settings.info(scan.frame, self.encoder, name, settings.find_lungs(scan), scan.remarks)
            steps = embed_scan(
                scan, self.encoder, settings.preset, chunk=self.chunk, depth=info.depth, lungs=info.lungs
            )
            features = torch.cat([part.cpu() for part in steps])
            embedded[key] = bag_tensor(info.slide_path or info.slide_id, features, info)
            embedded.update(instance_places(scan_coords(info), info))
        return embedded

    def _scan(self, given: Any, series_uid: str | None, acquisition: str | None) -> Scan:
        """The scan that an item holds, or the path of which it holds."""
        if isinstance(given, Scan):
            return oriented(given)
        if not isinstance(given, torch.Tensor | np.ndarray):
            return load_scan(given, series_uid=series_uid, acquisition=acquisition, allow_gaps=self.settings.allow_gaps)
        if not isinstance(given, MetaTensor):
            raise ScanReadError(
                "a scan without its affine: give a MetaTensor as LoadImaged makes it, a Scan, or a path"
            )
        file = str(given.meta.get("filename_or_obj") or "")
        voxels = given.as_tensor().cpu().numpy()
        affine = np.asarray(given.affine.cpu(), np.float64)
        affine = LPS_TO_RAS @ affine if given.meta.get("space") == SpaceKeys.LPS else affine
        name = _SUFFIX.sub("", Path(file).name) or "scan"
        return volume_scan(voxels[0] if len(voxels) == 1 and voxels.ndim == 4 else voxels, affine, name, file or None)
