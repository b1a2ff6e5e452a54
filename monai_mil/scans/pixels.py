"""Stored pixels become Hounsfield units, file by file, into one array."""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from monai_mil.errors import ScanReadError
from monai_mil.scans.dicom import DicomFile, DicomSlice, uid_name
from monai_mil.scans.repairs import AIR, Repairs, clean_bits, clip_air, padding_above_tissue, remarks_on, unwrap_12_bits

_NATIVE = ("", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # little endian; files without a header name none
_HTJ2K = ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203")
_UNDEFINED_LENGTH = 0xFFFFFFFF
_LONG_VR = (b"OB", b"OW", b"OD", b"OF", b"OL", b"OV", b"UN")
_INT16 = np.iinfo(np.int16)


def read_hu(slices: Sequence[DicomSlice]) -> tuple[np.ndarray, list[str]]:
    """The Hounsfield units of slices of one size.

    Returns:
        int16 where that is exact, else float32, ``[n, rows, columns]`` in the order given; remarks on repairs.

    Raises:
        ScanReadError: pixels are missing, truncated or cannot be decoded; names the file.
    """
    file = slices[0].file
    import pydicom

    unknown = _without_rescaling(slices)
    for piece in slices:
        _check_rescaling(piece)
    whole = all(piece.slope.is_integer() and piece.intercept.is_integer() for piece in slices)
    try:
        hu = np.empty((len(slices), file.rows, file.columns), np.int16 if whole else np.float32)
    except MemoryError as error:
        raise ScanReadError(
            f"scan of '{file.path}': {len(slices)} slices of {file.rows} x {file.columns} do not fit into memory"
        ) from error
    by_file: dict[DicomFile, list[int]] = defaultdict(list)
    for index, piece in enumerate(slices):
        by_file[piece.file].append(index)
    repairs = [Repairs()] * len(slices)
    too_large: dict[int, np.ndarray] = {}

    def fill(indices: list[int]) -> None:
        frames = stored_frames(slices[indices[0]].file, [slices[i].frame for i in indices])
        for index, stored in zip(indices, frames, strict=True):
            values, repairs[index] = slice_hu(stored, slices[index], hu[index])
            if values is not None:
                too_large[index] = values

    with pydicom.config.disable_value_validation(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, by_file.values()):
            pass
    if too_large:
        hu = hu.astype(np.float32)
        for index, values in too_large.items():
            hu[index] = values
    return hu, [*unknown, *remarks_on(repairs, file.rows * file.columns)]


def _without_rescaling(slices: Sequence[DicomSlice]) -> list[str]:
    """A remark where no slice says how stored values become Hounsfield units; an error where only some do."""
    silent = [piece for piece in slices if not piece.has_rescaling]
    if not silent:
        return []
    if len(silent) == len(slices):
        return ["no slice has RescaleSlope and RescaleIntercept: stored values are taken for Hounsfield units"]
    names = ", ".join(piece.name for piece in silent[:3]) + (" ..." if len(silent) > 3 else "")
    raise ScanReadError(
        f"scan of '{silent[0].file.path}': {len(silent)} of {len(slices)} slices lack RescaleSlope or RescaleIntercept "
        f"({names}), the others have them; export the series again"
    )


def _check_rescaling(piece: DicomSlice) -> None:
    if not (np.isfinite([piece.slope, piece.intercept]).all() and piece.slope > 0):
        raise ScanReadError(
            f"scan file '{piece.file.path}': RescaleSlope {piece.slope:g} and RescaleIntercept {piece.intercept:g} "
            "give no Hounsfield units; export the series again"
        )


def same_pixels(first: DicomSlice, second: DicomSlice) -> bool:
    """Whether two slices hold the same Hounsfield units."""
    return bool(np.array_equal(read_hu([first])[0], read_hu([second])[0]))


def slice_hu(stored: np.ndarray, piece: DicomSlice, out: np.ndarray) -> tuple[np.ndarray | None, Repairs]:
    """Write one slice's Hounsfield units into ``out``.

    Args:
        stored: integers as decoded, ``[rows, columns]``.
        piece: its header.
        out: int16 or float32, ``[rows, columns]``.

    Returns:
        The units as float32 where they do not fit ``out``, else None; what was repaired.
    """
    bright_padding, kept_padding = padding_above_tissue(piece)
    is_padding = None
    if bright_padding is not None:
        is_padding = (stored >= bright_padding[0]) & (stored <= bright_padding[1])
        stored = np.where(is_padding, 0, stored).astype(stored.dtype)
    file = piece.file
    stored, sign_extended, bits_masked = clean_bits(stored, file.bits_stored, file.high_bit, file.signed)
    stored, unwrapped = unwrap_12_bits(stored, piece)
    slope, intercept = (1.0, 0.0) if unwrapped else (piece.slope, piece.intercept)
    fits = rescale(stored, slope, intercept, out)
    hu = out if fits else stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    padded = 0
    if is_padding is not None:
        hu[is_padding] = AIR
        padded = int(is_padding.sum())
    clipped, lowest = clip_air(hu)
    highest = float(hu.max())
    done = Repairs(sign_extended, bits_masked, unwrapped, clipped + padded, lowest, kept_padding, highest)
    return (None if fits else hu), done


def rescale(stored: np.ndarray, slope: float, intercept: float, out: np.ndarray) -> bool:
    """Write ``slope * stored + intercept`` into ``out``; False, and nothing useful, where an int16 is too small."""
    if out.dtype != np.int16:
        np.multiply(stored, slope, out=out, casting="unsafe", dtype=np.float64)
        out += np.float32(intercept)
        return True
    ends = (int(stored.min()) * slope + intercept, int(stored.max()) * slope + intercept)
    if min(ends) < _INT16.min or max(ends) > _INT16.max:
        return False
    if slope == 1 and stored.dtype.itemsize == 2:
        # Sums modulo 65536 are right wherever the result fits, so no wider copy is needed.
        np.add(stored.view(np.uint16), np.uint16(int(intercept) % 65536), out=out.view(np.uint16))
    else:
        out[...] = stored.astype(np.int64) * int(slope) + int(intercept)
    return True


def stored_frames(file: DicomFile, frames: list[int]) -> list[np.ndarray]:
    """The stored integers of some 1-based frames of a file, ``[rows, columns]`` each.

    Raises:
        ScanReadError: pixels are missing, truncated or cannot be decoded.
    """
    if file.bits_allocated not in (8, 16, 32):
        raise ScanReadError(
            f"scan file '{file.path}': BitsAllocated is {file.bits_allocated}; CT is read from 8, 16 or 32 bits, "
            "export the series again"
        )
    try:
        if file.syntax in _NATIVE:
            return _native_frames(file, frames)
        return _decoded_frames(file, frames)
    except OSError as error:
        raise ScanReadError(f"scan file '{file.path}' cannot be read ({error.strerror or error})") from error


def _native_frames(file: DicomFile, frames: list[int]) -> list[np.ndarray]:
    kind = np.dtype(f"<{'i' if file.signed else 'u'}{file.bits_allocated // 8}")
    size = file.rows * file.columns * kind.itemsize
    with file.path.open("rb") as stream:
        stream.seek(file.pixel_offset)
        header = stream.read(12)
        if len(header) < 12 or struct.unpack_from("<HH", header) != (0x7FE0, 0x0010):
            raise ScanReadError(f"scan file '{file.path}': it has no pixel data; export the series again")
        explicit = header[4:6] in _LONG_VR
        if struct.unpack_from("<I", header, 8 if explicit else 4)[0] == _UNDEFINED_LENGTH:
            raise ScanReadError(
                f"scan file '{file.path}': its pixel data are compressed but it names no such transfer syntax; "
                f"export the file again"
            )
        start = file.pixel_offset + (12 if explicit else 8)
        pixels = []
        for frame in frames:
            values = np.empty((file.rows, file.columns), kind)
            stream.seek(start + (frame - 1) * size)
            if stream.readinto(values.data.cast("B")) < size:
                raise ScanReadError(
                    f"scan file '{file.path}': its pixel data are truncated at frame {frame} of {file.frames}; "
                    f"copy or export the file again"
                )
            pixels.append(values)
    return pixels


def _decoded_frames(file: DicomFile, frames: list[int]) -> list[np.ndarray]:
    import pydicom

    try:
        dataset = pydicom.dcmread(file.path, force=True)
        if "PixelData" not in dataset:
            raise ScanReadError(
                f"scan file '{file.path}': it has no pixel data, or they are truncated; copy or export the file again"
            )
        decoded = _htj2k_frames(dataset, file) if file.syntax in _HTJ2K else dataset.pixel_array
        pixels = np.asarray(decoded).reshape(file.frames, file.rows, file.columns)
    except ScanReadError:
        raise
    except Exception as error:  # every decoder has its own; their text may quote the header, so it is not passed on
        raise _decoding_error(file, str(error)) from None
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    kind = np.dtype(f"{'i' if file.signed else 'u'}{pixels.itemsize}")
    return [np.ascontiguousarray(pixels[frame - 1]).view(kind) for frame in frames]


def _htj2k_frames(dataset: Any, file: DicomFile) -> list[np.ndarray]:
    """High-Throughput JPEG 2000, for which pydicom has no decoder that comes with it."""
    import imagecodecs
    from pydicom import encaps

    if not imagecodecs.HTJ2K.available:
        raise ScanReadError(
            f"scan file '{file.path}': imagecodecs {imagecodecs.__version__} has no decoder for High-Throughput JPEG "
            "2000; pip install --upgrade imagecodecs"
        )
    if hasattr(encaps, "generate_frames"):
        encoded = encaps.generate_frames(dataset.PixelData, number_of_frames=file.frames)
    else:  # pydicom 2
        encoded = encaps.generate_pixel_data_frame(dataset.PixelData, file.frames)
    return [imagecodecs.htj2k_decode(frame) for frame in encoded]


def _decoding_error(file: DicomFile, reason: str) -> ScanReadError:
    known = uid_name(file.syntax)
    name = f"{known} ({file.syntax})" if known else "of no known name"
    if "missing" in reason and "dependenc" in reason:
        return ScanReadError(f"scan file '{file.path}': no decoder for transfer syntax {name}; pip install python-gdcm")
    return ScanReadError(
        f"scan file '{file.path}': its pixel data are damaged or truncated, or their transfer syntax {name} cannot be "
        f"decoded; copy the file again or export it uncompressed"
    )
