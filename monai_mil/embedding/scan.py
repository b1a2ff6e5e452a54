"""From one scan to its features: the preset its slices go through, and the encoder's answer for every slice."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from monai_mil.bags import BagInfo
from monai_mil.embedding.watch import tell_watcher
from monai_mil.errors import ScanReadError, SettingsError
from monai_mil.scans import (
    ITK_SUFFIXES,
    ORIENTATION,
    Depth,
    LungField,
    Scan,
    ScanFrame,
    SlicePreset,
    fits_values,
    has_doubtful_units,
    prepare_slices,
    slice_preset,
)

if TYPE_CHECKING:
    from torch import Tensor

    from monai_mil.encoders import Encoder

_OUTSIDE_HU = -1024


@dataclass(frozen=True)
class ScanSettings:
    """How scans are read and their slices made an encoder's input.

    Attributes:
        preset: windows and statistics, complete.
        allow_gaps: take scans that lack slices.
        lungs: set everything outside the lungs to -1024 HU, found by this method (see ``scans.lung_mask``); None
            leaves the scan whole.
        depth: bring every scan to this number of layers; None takes each slice as it is.
        depth_mode: how: ``resize`` or ``middle`` (see ``scans.Depth``).
        accept_units: take scans whose values may be no Hounsfield units.

    Raises:
        SettingsError: the preset has no statistics yet, or there is no such method or depth, or no package for it.
    """

    preset: SlicePreset
    allow_gaps: bool = False
    lungs: Literal["threshold", "lungmask"] | None = None
    depth: int | None = None
    depth_mode: Literal["resize", "middle"] = "resize"
    accept_units: bool = False

    def __post_init__(self) -> None:
        if self.lungs not in (None, "threshold", "lungmask"):
            raise SettingsError(f"lungs '{self.lungs}': is none of threshold, lungmask")
        if self.lungs == "lungmask" and find_spec("lungmask") is None:
            raise SettingsError("lungs 'lungmask' needs its package: pip install lungmask, or take lungs 'threshold'")
        if self.depth is not None:
            Depth(self.depth, self.depth_mode)
        if self.preset.mean is None or self.preset.std is None:
            raise SettingsError(
                f"preset '{self.preset.name}' has no statistics yet: they are those of a training split; give the "
                "preset.json that embedding one has left beside its bags"
            )

    @property
    def layers(self) -> Depth | None:
        """How the slices become the bag's instances; None where each is one."""
        return None if self.depth is None else Depth(self.depth, self.depth_mode)

    def check_units(self, scan: Scan) -> None:
        """Raise a ScanReadError if the scan's values may be no Hounsfield units and nobody said that they are fine.

        A preset whose windows lie where the values do says so too.
        """
        if not self.accept_units:
            check_units(scan, self.preset)

    def find_lungs(self, scan: Scan) -> LungField | None:
        """Where the scan is not blanked; None if nowhere.

        Raises:
            NoLungsError: there are no lungs.
            ScanReadError: a package that finds them is missing.
        """
        return None if self.lungs is None else LungField.find(scan, self.lungs)

    def info(
        self,
        frame: ScanFrame,
        encoder: Encoder,
        scan_id: str,
        lungs: LungField | None = None,
        remarks: tuple[str, ...] = (),
    ) -> BagInfo:
        """The frame of the bag that these settings give for a scan with these lungs and its reader's remarks."""
        path = None if frame.path is None else str(Path(frame.path).absolute())
        return BagInfo(
            slide_id=scan_id,
            slide_path=path,
            encoder=encoder.name,
            encoder_digest=encoder.digest,
            scan=dataclasses.replace(frame, scan_id=scan_id, path=path),
            preset=self.preset.record(),
            depth=self.layers,
            lungs=lungs,
            orientation=ORIENTATION,
            remarks=remarks,
        )


def check_units(scan: Scan, preset: SlicePreset) -> None:
    """Raise a ScanReadError if the scan's values may be no Hounsfield units and the preset's windows lie elsewhere."""
    if has_doubtful_units(scan.hu) and not fits_values(preset, scan.hu):
        low, high = float(scan.hu.min()), float(scan.hu.max())
        name = scan.frame.path or scan.scan_id
        why = "".join(f" ({remark})" for remark in scan.remarks if "RescaleSlope" in remark)
        raise ScanReadError(
            f"scan '{name}': its values run from {low:g} to {high:g}, without air at -1000: these may be no Hounsfield "
            f"units{why}; export it in HU, give a preset whose windows fit (--preset center/width), or pass "
            "accept_units=True (--accept-units)"
        )


def check_packages(paths: Iterable[Path]) -> None:
    """Raise a SettingsError if a package is missing without which some of these scans cannot be read, once for all."""
    itk = next((path for path in paths if path.name.lower().endswith(ITK_SUFFIXES)), None)
    if itk is not None and find_spec("itk") is None:
        raise SettingsError(f"scan '{itk}': MHA and NRRD files need ITK; pip install 'monai-mil[itk]'")


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
    if encoder.card.preset is not None and preset != slice_preset(encoder.card.preset):
        raise SettingsError(
            f"encoder '{encoder.name}' is made for preset '{encoder.card.preset}', not for '{preset.name}'; choose "
            "that preset or another encoder"
        )


def embed_scan(
    scan: Scan,
    encoder: Encoder,
    preset: SlicePreset,
    *,
    chunk: int = 64,
    depth: Depth | None = None,
    lungs: LungField | None = None,
) -> Iterator[Tensor]:
    """Yield the features of every slice, in the scan's order; memory does not grow with the number of slices.

    What lies outside the lungs is blanked first, then layers are made of the slices, then each is windowed, padded and
    resized by itself.

    Args:
        scan: ``n`` slices in Hounsfield units, oriented as ``load_scan`` and ``oriented`` give them.
        encoder: maps prepared slices ``[m, channels, s, s]`` to features ``[m, d]`` or ``[m, d, h, w]``.
        preset: how slices are prepared, with statistics.
        chunk: slices a step, ``m``; the last step may have fewer.
        depth: how slices become layers, which are encoded in their place; None encodes the slices.
        lungs: what is outside of them is set to -1024 HU; None keeps all.

    Yields:
        Features of up to ``chunk`` slices or layers, float16, on the encoder's device.

    Raises:
        SettingsError: the preset has no statistics.

    Examples:
        >>> import nibabel
        >>> import numpy as np
        >>> from monai_mil.embedding import embed_scan
        >>> from monai_mil.encoders import get_encoder
        >>> from monai_mil.scans import load_scan, slice_preset
        >>> nibabel.save(nibabel.Nifti1Image(np.zeros((64, 64, 6), np.int16), np.eye(4)), folder / "scan.nii.gz")
        >>> scan, encoder = load_scan(folder / "scan.nii.gz"), get_encoder("ct_texture")
        >>> parts = embed_scan(scan, encoder, slice_preset("chest_rsna"), chunk=4)
        >>> [len(part) for part in parts]
        [4, 2]
    """
    size = encoder.card.preprocessing.input_size
    places = np.arange(len(scan), dtype=float) if depth is None else depth.places(len(scan))
    for start in range(0, len(places), chunk):
        layers = np.stack([_layer(scan, lungs, place) for place in places[start : start + chunk].tolist()])
        yield encoder.encode(prepare_slices(layers, preset, size))
        tell_watcher(min(start + chunk, len(places)), len(places))


def scan_coords(info: BagInfo) -> np.ndarray:
    """A scan's ``coords``: int64 ``[n, 2]``, the number of the slice (of a resized scan: of the layer) and 0."""
    index = info.scan_instances()
    assert index is not None
    return np.stack([index, np.zeros_like(index)], axis=1)


def _layer(scan: Scan, lungs: LungField | None, place: float) -> np.ndarray:
    """What lies at a slice, or linearly between two: HU ``[rows, columns]``."""
    below = int(place)
    share = np.float32(place - below)
    low = _slice(scan, lungs, below)
    return low if share == 0 else low * (1 - share) + _slice(scan, lungs, below + 1) * share


def _slice(scan: Scan, lungs: LungField | None, index: int) -> np.ndarray:
    hu = scan.hu[index]
    return hu if lungs is None else np.where(lungs.inside(index), hu, hu.dtype.type(_OUTSIDE_HU))
