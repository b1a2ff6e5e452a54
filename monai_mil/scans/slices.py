"""Slices in Hounsfield units to the tensor a network sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from monai_mil.errors import SettingsError
from monai_mil.scans.windows import SlicePreset, Window

if TYPE_CHECKING:
    from monai_mil.scans.scan import Scan

_CHUNK = 32


def prepare_slices(hu: np.ndarray | Tensor, preset: SlicePreset, size: int) -> Tensor:
    """Window, pad to a square, resize and normalise; each slice by itself, so that chunks of a scan may be passed.

    The steps and their order are those of Harvey et al. 2026 (clip, pad with the lowest value, antialiased bilinear
    resize, normalise). Windows come before the resize: it then averages what a reader sees, as the public solutions
    do whose images are windowed when they are written. Averaging HU first would let air at -1000 darken the soft
    tissue beside it far beyond a narrow window's black.

    Args:
        hu: any number type, ``[m, rows, columns]``.
        preset: its windows or clip, and statistics.
        size: side of the result, px.

    Returns:
        float32 ``[m, channels, size, size]``.

    Raises:
        SettingsError: the preset has no statistics yet.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.scans import prepare_slices, slice_preset
        >>> hu = np.zeros((2, 100, 80), np.int16)
        >>> list(prepare_slices(hu, slice_preset("chest_rsna"), size=56).shape)
        [2, 3, 56, 56]
    """
    if preset.mean is None or preset.std is None:
        raise SettingsError(
            f"slice preset '{preset.name}': it has no mean and std yet; get them with fit_statistics on the training "
            "scans, or take a preset with fixed ones such as 'chest_rsna'"
        )
    values = _resized_channels(hu, preset, size)
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (preset.mean, preset.std))
    if values.shape[1] == preset.channels:
        return values.sub_(mean).div_(std)
    return values.sub(mean).div_(std)


def fit_statistics(scans: Iterable[Scan], preset: SlicePreset, size: int = 224) -> SlicePreset:
    """The preset with mean and std of ``scans``, which are to be the training split's.

    Both are averaged over scans, so that a long scan counts as much as a short one, and measured on what the network
    sees: clipped or windowed, padded and resized slices (Harvey et al. 2026).

    Args:
        scans: read one after the other; one is held at a time.
        preset: any; statistics it has are replaced.
        size: side the slices are resized to, px.

    Raises:
        SettingsError: there is no scan, or all slices are the same grey.
    """
    moments = [_scan_moments(scan.hu, preset, size) for scan in scans]
    if not moments:
        raise SettingsError(f"slice preset '{preset.name}': no scans to fit statistics on; pass the training split")
    mean, std = (row.expand(preset.channels).tolist() for row in torch.stack(moments).mean(dim=0))
    if min(std) <= 0:
        raise SettingsError(
            f"slice preset '{preset.name}': the scans have the same value everywhere within the preset's range; "
            "check that they are in HU and fit the preset"
        )
    return replace(preset, mean=tuple(mean), std=tuple(std))


def _scan_moments(hu: np.ndarray, preset: SlicePreset, size: int) -> Tensor:
    """Mean and std over all pixels of one scan, float64 ``[2, channels]``."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for start in range(0, len(hu), _CHUNK):
        values = _resized_channels(hu[start : start + _CHUNK], preset, size).double()
        count += values[:, 0].numel()
        total = total + values.sum(dim=(0, 2, 3))
        squares = squares + values.square().sum(dim=(0, 2, 3))
    mean = total / count
    return torch.stack([mean, (squares / count - mean.square()).clamp_min(0).sqrt()])


def _resized_channels(hu: np.ndarray | Tensor, preset: SlicePreset, size: int) -> Tensor:
    """Clipped or windowed slices, float32 ``[m, channels, size, size]``; one channel if all windows are the same."""
    distinct = tuple(dict.fromkeys(preset.windows))
    # One slice at a time stays in the processor's cache.
    slices = [_resize(_channels(_float(hu[index : index + 1]), preset, distinct), size) for index in range(len(hu))]
    values = torch.cat(slices) if slices else torch.empty(0, preset.channels, size, size)
    if 1 < len(distinct) < len(preset.windows):
        return values[:, [distinct.index(window) for window in preset.windows]]
    return values


def _channels(values: Tensor, preset: SlicePreset, windows: tuple[Window, ...]) -> Tensor:
    """Squares ``[m, c, s, s]`` of HU ``[m, rows, columns]``, which are overwritten."""
    low, high = preset.clip
    values = values.clamp_(low, high)
    if windows:
        grey = [(values - window.low) / window.width for window in windows]
        return _pad_to_square(torch.stack(grey, dim=1).clamp_(0, 1), 0.0)
    return _pad_to_square(values[:, None], low)


def _resize(values: Tensor, size: int) -> Tensor:
    if values.shape[-1] == size:
        return values
    return F.interpolate(values, size=(size, size), mode="bilinear", antialias=True)


def _float(hu: np.ndarray | Tensor) -> Tensor:
    """A float32 copy."""
    if isinstance(hu, Tensor):
        return hu.to(torch.float32, copy=True)
    return torch.from_numpy(np.array(hu, dtype=np.float32))


def _pad_to_square(values: Tensor, fill: float) -> Tensor:
    """The slices in the middle of a square."""
    rows, columns = values.shape[-2:]
    if rows == columns:
        return values
    side = max(rows, columns)
    top, left = (side - rows) // 2, (side - columns) // 2
    return F.pad(values, (left, side - columns - left, top, side - rows - top), value=fill)
