"""How a bag file stores features: as float16, or in one byte each, on a scale of every channel's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from monai_mil.bags.checksums import write_checksums
from monai_mil.bags.datasets import CHECKSUMS
from monai_mil.checksum import crc32
from monai_mil.errors import BagError, SettingsError

STORAGES = ("float16", "uint8")
TOKEN_MAJOR = "nhwd"
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, eq=False)
class MappedFeatures:
    """Features that stay in their file until somebody asks for them.

    Attributes:
        features: ``[n, d]`` or ``[n, d, h, w]``, channels innermost in memory, in the file's own type; uint8 are codes.
            Writing into them changes neither the file nor anybody else's.
        scale: of codes, float32 ``[d]``, else None; a feature is ``offset + scale * code``.
        offset: likewise.
    """

    features: Tensor
    scale: Tensor | None = None
    offset: Tensor | None = None


def check_storage(storage: str) -> None:
    """Raise a SettingsError unless there is such a storage."""
    if storage not in STORAGES:
        raise SettingsError(f"storage '{storage}': must be one of {', '.join(STORAGES)}")


def write_features(
    path: Path, file: h5py.File, features: np.ndarray, storage: str
) -> tuple[h5py.Dataset, dict[str, str]]:
    """Write the dataset ``features``, contiguous, and its checksums, block by block; of uint8 its scale and offset too.

    Args:
        path: the bag, for messages.
        file: where it goes.
        features: ``[n, d]``, or ``[n, d, h, w]``, which are stored token-major.
        storage: one of ``STORAGES``. uint8 keeps 255 steps between the lowest and the highest value of every channel
            of the bag: half the bytes, see the benchmark ``insight`` for the error.

    Returns:
        The dataset, and the SHA-256 of the bytes of all else that was written, by name; the checksums stand for the
        features, since a second pass over them costs as much as writing them.

    Raises:
        BagError: a feature is NaN or beyond float16; names file and instance.
    """
    stored = np.moveaxis(features, 1, -1)
    scale, offset, digests = None, None, {}
    if storage == "uint8":
        scale, offset = _scales(_blocks(path, stored), stored.shape[-1])
        for name, values in (("feature_scale", scale.numpy()), ("feature_offset", offset.numpy())):
            file.create_dataset(name, data=values)
            digests[name] = digest_of([values])
    dataset = file.create_dataset("features", shape=stored.shape, dtype=storage)
    if features.ndim == 4:
        dataset.attrs["layout"] = TOKEN_MAJOR
    start, checksums = 0, []
    for block in _blocks(path, stored):
        rows = block if scale is None or offset is None else _encode(block, scale, offset)
        dataset.write_direct(rows, dest_sel=np.s_[start : start + len(rows)])
        checksums.append(crc32(rows.data))
        start += len(rows)
    written = write_checksums(file, checksums, _block_rows(stored))
    return dataset, digests | {CHECKSUMS: digest_of([written])}


def digest_of(blocks: Iterable[np.ndarray]) -> str:
    """SHA-256 of the bytes of an array that comes in blocks of rows."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def decode(codes: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Float32 features of uint8 codes whose last axis is the channel."""
    features = codes * scale
    features += offset
    return features


def first_non_finite_row(features: np.ndarray) -> int | None:
    """Index of the first row of a float16 array ``[n, ...]`` that holds NaN or infinity, None where there is none."""
    # numpy has no fast float16 arithmetic, but of the bit patterns the NaNs and infinities are the largest: among all
    # of them read as unsigned numbers if negative, among the positive ones (read as signed numbers) otherwise.
    bits = np.ascontiguousarray(features).view(np.uint16)
    if bits.size == 0 or (bits.max() < 0xFC00 and bits.view(np.int16).max() < 0x7C00):
        return None
    exponent = bits & np.uint16(0x7C00)
    return int(np.flatnonzero((exponent == 0x7C00).reshape(len(features), -1).any(axis=1))[0])


def first_bad_row(rows: Tensor) -> int | None:
    """Index of the first of the rows ``[n, ...]``, floats of any type, that holds NaN or infinity; None if none does.

    They are read a block at a time, and never widened.
    """
    step = max(1, _BLOCK_BYTES // max(1, rows.element_size() * rows[:1].numel()))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        if block.dtype == torch.float16:
            bad = first_non_finite_row(block.numpy())
            if bad is not None:
                return start + bad
        elif not torch.isfinite(block.sum()):
            finite = torch.isfinite(block.flatten(1)).all(dim=1)
            if not finite.all():
                return start + int(torch.nonzero(~finite)[0])
    return None


def _block_rows(stored: np.ndarray) -> int:
    return max(1, _BLOCK_BYTES // max(1, 2 * int(np.prod(stored.shape[1:]))))


def _blocks(path: Path, stored: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in float16, checked."""
    rows = _block_rows(stored)
    for start in range(0, len(stored), rows):
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(stored[start : start + rows], dtype=np.float16)
        bad = first_non_finite_row(block)
        if bad is not None:
            raise BagError(
                f"bag '{path}': the features of instance {start + bad} are NaN or beyond float16's 65504; "
                "check the encoder and the slide or scan"
            )
        yield block


def _scales(blocks: Iterator[np.ndarray], width: int) -> tuple[Tensor, Tensor]:
    """Scale and offset of every channel, float32 ``[d]``: code 0 is its lowest value, 255 its highest."""
    low, high = torch.full((width,), torch.inf), torch.full((width,), -torch.inf)
    for block in blocks:
        rows = torch.tensor(block).flatten(0, -2).float()
        low, high = torch.minimum(low, rows.amin(dim=0)), torch.maximum(high, rows.amax(dim=0))
    constant = high <= low  # a bag without rows too
    return torch.where(constant, 1.0, (high - low) / 255), torch.where(low.isfinite(), low, 0.0)


def _encode(block: np.ndarray, scale: Tensor, offset: Tensor) -> np.ndarray:
    steps = torch.tensor(block).float().sub_(offset).div_(scale)
    return steps.round_().clamp_(0, 255).to(torch.uint8).numpy()
