"""Known defects of stored CT values, put right slice by slice, and the account of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from monai_mil.scans.dicom import DicomSlice

AIR = -1024
_HIGHEST_TISSUE = 3071
SURELY_AIR = -500
_LEAST_AIR = 0.02
_HIGHEST_OF_CT = 31_743
"""The highest value of the extended scale of 16 bits with an intercept of -1024."""


@dataclass(frozen=True)
class Repairs:
    """What was done to one slice's values.

    Attributes:
        sign_extended: negative values were stored in fewer bits than the file uses for each.
        bits_masked: bits above BitsStored were set and are no part of the value.
        unwrapped: 12-bit values had wrapped around at 4096.
        clipped: pixels that were below -1024 HU or marked as padding, now -1024.
        lowest: the lowest value before that, HU.
        kept_padding: HU of a PixelPaddingValue that could be tissue and was left alone, or None.
        highest: the highest value, HU.
    """

    sign_extended: bool = False
    bits_masked: bool = False
    unwrapped: bool = False
    clipped: int = 0
    lowest: float = 0.0
    kept_padding: float | None = None
    highest: float = 0.0


def clean_bits(stored: np.ndarray, bits_stored: int, high_bit: int, signed: bool) -> tuple[np.ndarray, bool, bool]:
    """Stored integers with the meaning the header gives them.

    BitsStored and HighBit alone say what a value is (PS3.5 8.1.1). Above it a file may hold overlays or anything else,
    or leave the sign bits of negative numbers at 0 (RSNA abdominal trauma). Where every negative number has its sign
    in all of them, a few positive ones that need more bits are taken as they stand.

    Args:
        stored: integers as decoded, in the type of BitsAllocated and PixelRepresentation.
        bits_stored: BitsStored.
        high_bit: HighBit.
        signed: PixelRepresentation is 1.

    Returns:
        The values, whether signs were extended, whether foreign bits were masked.
    """
    spare = stored.itemsize * 8 - bits_stored
    low_bits = high_bit + 1 - bits_stored
    if low_bits > 0:
        unsigned = stored.view(f"u{stored.itemsize}") >> low_bits
        stored = unsigned.view(stored.dtype)
    if spare <= 0 or stored.size == 0:
        return stored, False, False
    if not signed:
        masked = stored.max() >= 1 << bits_stored
        return (stored & ((1 << bits_stored) - 1) if masked else stored), False, bool(masked)
    if _has_its_signs(stored, bits_stored):
        return stored, False, False
    values = (stored << spare) >> spare
    changed = stored[values != stored]
    if changed.size == 0:
        return stored, False, False
    without_sign = (changed >= 0) & (changed < 1 << bits_stored)
    return values, bool(without_sign.any()), not without_sign.all()


def _has_its_signs(stored: np.ndarray, bits_stored: int) -> bool:
    """Whether negative numbers reach to the top bit, and what would be negative without that is not as much as air."""
    negative = stored < 0
    if not negative.any() or stored.min() < -(1 << (bits_stored - 1)):
        return False
    as_air = (stored >= (1 << bits_stored) + AIR) & (stored < 1 << bits_stored)
    return int(as_air.sum()) < _LEAST_AIR * stored.size


def unwrap_12_bits(stored: np.ndarray, piece: DicomSlice) -> tuple[np.ndarray, bool]:
    """Undo the wrap of some 12-bit slices (RSNA intracranial haemorrhage), whose HU below 0 had 4096 added.

    Such slices say BitsStored 12, unsigned, and an intercept above -100: they could hold no air. Their values are HU
    from -1000 upwards modulo 4096. Only air proves it: much of the slice, and most of what would have wrapped, lies
    where that of -1024 to -700 HU would; metal alone is as bright but not so much, nor there. A slice that names no
    rescaling at all proves nothing.

    Returns:
        HU, or the values unchanged where the slice has no such defect; whether it had.
    """
    file = piece.file
    if file.bits_stored != 12 or file.signed or piece.intercept <= -100 or piece.slope != 1 or not piece.has_rescaling:
        return stored, False
    values = stored.astype(np.int16)
    wrapped = values >= 4096 - 1000
    air = int((wrapped & (values < 4096 - 700)).sum())
    if air < max(_LEAST_AIR * values.size, int(wrapped.sum()) / 2):
        return stored, False
    values[wrapped] -= 4096
    return values, True


def clip_air(hu: np.ndarray) -> tuple[int, float]:
    """Set everything below -1024 HU, and everything that is no number, to -1024, in place.

    No tissue is darker than air; lower values (-2000, -3024) fill the corners outside the field of view and would
    spoil every statistic.

    Returns:
        How many pixels were changed, and the lowest value there was.
    """
    missing = 0
    if hu.dtype.kind == "f":
        no_number = ~np.isfinite(hu)
        missing = int(no_number.sum())
        if missing:
            hu[no_number] = AIR
    lowest = float(hu.min())
    if lowest >= AIR:
        return missing, lowest
    below = int((hu < AIR).sum())
    np.maximum(hu, AIR, out=hu)
    return missing + below, lowest


def padding_above_tissue(piece: DicomSlice) -> tuple[tuple[int, int] | None, float | None]:
    """The slice's padding values where they are brighter than tissue, and the HU of one that could be tissue.

    Padding darker than air needs no care (see :func:`clip_air`). A PixelPaddingValue that means 0 HU, which some
    systems write, would remove water, so padding within tissue is left alone.
    """
    padding = piece.file.padding
    if padding is None:
        return None, None
    hu = [value * piece.slope + piece.intercept for value in padding]
    if min(hu) > _HIGHEST_TISSUE:
        return padding, None
    return None, (max(hu) if max(hu) > AIR + 124 else None)


def remarks_on(repairs: Iterable[Repairs], pixels_per_slice: int) -> list[str]:
    """The account of all slices' repairs, one sentence each."""
    done = list(repairs)
    remarks = []
    for field, what in (
        ("sign_extended", "negative values stored without their sign bits were put right"),
        ("bits_masked", "bits above BitsStored were ignored"),
        ("unwrapped", "12-bit values that had wrapped around at 4096 were put right (unsigned, no negative intercept)"),
    ):
        count = sum(getattr(one, field) for one in done)
        if count:
            remarks.append(f"{what} in {count} of {len(done)} slices")
    clipped = sum(one.clipped for one in done)
    if clipped:
        share = 100 * clipped / (len(done) * pixels_per_slice)
        lowest = min(one.lowest for one in done)
        remarks.append(
            f"{share:.3g} % of the pixels were padding or below {AIR} HU (lowest {lowest:g}): set to {AIR} HU"
        )
    darkest = min(one.lowest for one in done)
    if darkest > SURELY_AIR:
        remarks.append(f"no pixel is darker than {darkest:g} HU, air would be -1000: these may be no Hounsfield units")
    brightest = max(one.highest for one in done)
    if brightest > _HIGHEST_OF_CT:
        remarks.append(
            f"values up to {brightest:g} HU, which no CT measures: padding that the header does not name, or damage"
        )
    kept = {one.kept_padding for one in done if one.kept_padding is not None}
    if kept:
        shown = "/".join(f"{hu:g}" for hu in sorted(kept)[:3])
        remarks.append(f"PixelPaddingValue means {shown} HU, which may be tissue: left as it is")
    return remarks
