"""From one scan to its features: the preset its slices go through, and the encoder's answer for every slice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from monai_mil.bags.info import BagInfo
from monai_mil.errors import SettingsError
from monai_mil.scans import Scan, ScanFrame, SlicePreset, prepare_slices

if TYPE_CHECKING:
    from torch import Tensor

    from monai_mil.encoders import Encoder


@dataclass(frozen=True)
class ScanSettings:
    """How scans are read and their slices made an encoder's input.

    Attributes:
        preset: windows and statistics, complete.
        allow_gaps: take scans that lack slices.

    Raises:
        SettingsError: the preset has no statistics yet.
    """

    preset: SlicePreset
    allow_gaps: bool = False

    def __post_init__(self) -> None:
        if self.preset.mean is None or self.preset.std is None:
            raise SettingsError(
                f"preset '{self.preset.name}' has no statistics yet: they are those of a training split; give the "
                "preset.json that embedding one has left beside its bags"
            )

    def info(self, frame: ScanFrame, encoder: Encoder, scan_id: str) -> BagInfo:
        """The frame of the bag that these settings give for a scan."""
        path = None if frame.path is None else str(Path(frame.path).absolute())
        return BagInfo(
            slide_id=scan_id,
            slide_path=path,
            encoder=encoder.name,
            encoder_digest=encoder.digest,
            scan=dataclasses.replace(frame, scan_id=scan_id, path=path),
            preset=self.preset.record(),
        )


def check_preset(preset: SlicePreset, encoder: Encoder) -> None:
    """Raise a SettingsError unless the encoder takes slices of this preset."""
    if "slices" not in encoder.card.reads:
        raise SettingsError(
            f"encoder '{encoder.name}' is for tiles of slides, not for CT slices; take 'ct_texture' or a network"
        )
    if encoder.card.channels != preset.channels:
        raise SettingsError(
            f"preset '{preset.name}' gives slices of {preset.channels} channels, encoder '{encoder.name}' takes "
            f"{encoder.card.channels}; choose another preset or encoder"
        )


def embed_scan(scan: Scan, encoder: Encoder, preset: SlicePreset, *, chunk: int = 64) -> Iterator[Tensor]:
    """Yield the features of every slice, in the scan's order; memory does not grow with the number of slices.

    Args:
        scan: ``n`` slices in Hounsfield units.
        encoder: maps prepared slices ``[m, channels, s, s]`` to features ``[m, d]`` or ``[m, d, h, w]``.
        preset: how slices are prepared, with statistics.
        chunk: slices a step, ``m``; the last step may have fewer.

    Yields:
        Features of up to ``chunk`` slices, float16, on the encoder's device.

    Raises:
        SettingsError: the preset has no statistics.
    """
    size = encoder.card.preprocessing.input_size
    for start in range(0, len(scan), chunk):
        yield encoder.encode(prepare_slices(scan.hu[start : start + chunk], preset, size))


def slice_coords(n: int) -> np.ndarray:
    """A scan's ``coords``: int64 ``[n, 2]``, the slice's index and 0."""
    return np.stack([np.arange(n), np.zeros(n, int)], axis=1)
