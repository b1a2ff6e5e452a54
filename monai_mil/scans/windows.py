"""Windows on Hounsfield units, and the presets that turn slices into a network's input."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import SettingsError
from monai_mil.files import parse_json

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

HU_RANGE = (-1024.0, 3071.0)
"""What 12 bits hold. Scanners fill what lies outside the field of view with -2000 or -3024, which is no density."""


@dataclass(frozen=True)
class Window:
    """A linear grey scale over Hounsfield units.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.scans import Window
        >>> Window(center=40, width=400).apply(np.array([-160, 40, 1000]))
        array([0. , 0.5, 1. ], dtype=float32)
    """

    center: float
    """HU shown as 0.5."""
    width: float
    """HU from black to white."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.center) and np.isfinite(self.width) and self.width > 0):
            raise SettingsError(f"window {self.center:g}/{self.width:g}: the width must be above 0 and both be finite")

    @property
    def low(self) -> float:
        """HU at and below which all is 0."""
        return self.center - self.width / 2

    @property
    def high(self) -> float:
        """HU at and above which all is 1."""
        return self.center + self.width / 2

    def apply(self, hu: np.ndarray) -> np.ndarray:
        """Grey values in 0 to 1, float32, of HU of any shape."""
        grey = (np.asarray(hu, np.float32) - np.float32(self.low)) / np.float32(self.width)
        return np.clip(grey, 0, 1, out=grey)


@dataclass(frozen=True)
class SlicePreset:
    """How slices in Hounsfield units become the channels a network sees."""

    name: str
    windows: tuple[Window, ...] = ()
    """One channel each, in 0 to 1 before normalisation; none gives one channel of HU within ``clip``."""
    clip: tuple[float, float] = HU_RANGE
    """HU are limited to it first; slices that are not square are padded with its lower end."""
    mean: tuple[float, ...] | None = None
    """Of every channel; None: ``fit_statistics`` finds it on the training scans."""
    std: tuple[float, ...] | None = None

    @property
    def channels(self) -> int:
        """Channels of the prepared slices."""
        return len(self.windows) or 1

    def record(self) -> dict[str, Any]:
        """All of it as plain JSON, for bag files and bundles."""
        return {
            "name": self.name,
            "windows": [[window.center, window.width] for window in self.windows],
            "clip": list(self.clip),
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
        }

    @staticmethod
    def from_record(record: dict[str, Any]) -> SlicePreset:
        """The preset ``record`` was called on.

        Raises:
            SettingsError: it is no such record.
        """
        try:
            low, high = record["clip"]
            return SlicePreset(
                name=str(record["name"]),
                windows=tuple(Window(float(center), float(width)) for center, width in record["windows"]),
                clip=(float(low), float(high)),
                mean=None if record["mean"] is None else tuple(map(float, record["mean"])),
                std=None if record["std"] is None else tuple(map(float, record["std"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SettingsError(
                f"slice preset: not a preset's record ({type(error).__name__}: {error}); "
                "give name, windows, clip, mean and std as SlicePreset.record() does"
            ) from error


def _windowed(name: str, *windows: tuple[float, float]) -> SlicePreset:
    """Three windows, or one repeated, in ImageNet's statistics."""
    channels = tuple(Window(*window) for window in windows * (3 // len(windows)))
    return SlicePreset(name, windows=channels, mean=IMAGENET_MEAN, std=IMAGENET_STD)


_PRESETS = {
    preset.name: preset
    for preset in (
        # Harvey et al. 2026 (arXiv 2605.27306): one channel of HU in the training split's statistics. Their chest and
        # abdomen HU are not clipped; here what lies outside 12 bits is, so that padding moves no statistics.
        SlicePreset("head_paper", clip=(-100.0, 300.0)),
        SlicePreset("chest_paper"),
        SlicePreset("abdomen_paper"),
        # Usual in public solutions of the RSNA challenges: brain, subdural, bone; lung, embolism, mediastinum; soft.
        _windowed("head_rsna", (40, 80), (80, 200), (600, 2800)),
        _windowed("chest_rsna", (-600, 1500), (100, 700), (40, 400)),
        _windowed("abdomen_rsna", (50, 400)),
        _windowed("lung", (-600, 1500)),
        # INSIGHT (arXiv 2412.02012): [-1000, 400] HU as 0 to 1 in three channels, without ImageNet's statistics.
        SlicePreset("insight", windows=(Window(-300, 1400),) * 3, mean=(0.0,) * 3, std=(1.0,) * 3),
    )
}

PRESET_NAMES = tuple(_PRESETS)
"""The presets ``slice_preset`` knows."""


def slice_preset(name: str) -> SlicePreset:
    """A preset by name, or any window as ``"center/width"`` in HU, repeated to three channels.

    ``*_paper`` presets have no statistics until ``fit_statistics`` has seen the training scans; ``insight`` leaves grey
    values in 0 to 1; all others, and windows by their numbers, are normalised as ImageNet's images are.

    Raises:
        SettingsError: neither a preset nor a window.

    Examples:
        >>> from monai_mil.scans import slice_preset
        >>> preset = slice_preset("-600/1500")
        >>> preset.windows[0], preset.channels
        (Window(center=-600.0, width=1500.0), 3)
    """
    if name in _PRESETS:
        return _PRESETS[name]
    number = r"([-+]?\d+(?:\.\d+)?)"
    if found := re.fullmatch(rf"\s*{number}\s*/\s*{number}\s*", name):
        window = Window(float(found[1]), float(found[2]))
        return replace(_PRESETS["lung"], name=f"{window.center:g}/{window.width:g}", windows=(window,) * 3)
    raise SettingsError(
        f"slice preset '{name}': unknown; use one of {', '.join(_PRESETS)}, "
        "or a window as 'center/width' such as '40/400'"
    )


def find_preset(preset: SlicePreset | str | os.PathLike[str]) -> SlicePreset:
    """A preset by its name, by ``"center/width"``, or from the JSON file that holds its record.

    Raises:
        SettingsError: the name is unknown, or the file cannot be read.
    """
    if isinstance(preset, SlicePreset):
        return preset
    path = Path(preset)
    if path.suffix.lower() != ".json":
        return slice_preset(os.fspath(preset))
    try:
        return SlicePreset.from_record(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, SettingsError) as error:
        raise SettingsError(
            f"preset '{path}': cannot be read ({error}); give the preset.json of an embedding"
        ) from None


def same_but_statistics(preset: SlicePreset, other: SlicePreset) -> bool:
    """Whether two presets prepare slices the same way up to the normalisation."""
    return replace(preset, mean=None, std=None) == replace(other, mean=None, std=None)
