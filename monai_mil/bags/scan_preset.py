"""The preset of a cohort's scans: by name, from the file an earlier run has left, or fitted on the training split."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from monai_mil.errors import SettingsError
from monai_mil.files import make_folder, replacing
from monai_mil.scans import Scan, SlicePreset, fit_statistics, slice_preset

PRESET_FILE = "preset.json"


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
        return SlicePreset.from_record(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, SettingsError) as error:
        raise SettingsError(
            f"preset '{path}': cannot be read ({error}); give the preset.json of an embedding"
        ) from None


def same_but_statistics(preset: SlicePreset, other: SlicePreset) -> bool:
    """Whether two presets prepare slices the same way up to the normalisation."""
    return replace(preset, mean=None, std=None) == replace(other, mean=None, std=None)


def fitted_preset(
    preset: SlicePreset, out_dir: Path, training: Iterable[Scan], size: int, *, overwrite: bool = False
) -> SlicePreset:
    """The preset with the statistics in ``<out_dir>/preset.json``, which are fitted first where there are none.

    Args:
        preset: one without statistics.
        out_dir: folder of the bags; runs that share it fit once.
        training: the scans of the training split.
        size: side of the slices the encoder takes, px.
        overwrite: fit anew where the file is damaged or another preset's.

    Raises:
        SettingsError: the file is another preset's, or there is no scan to fit on.
        OutputError: the file cannot be written.
    """
    path = out_dir / PRESET_FILE
    lock = out_dir / ".partial" / f"{PRESET_FILE}.lock"
    make_folder(lock.parent)
    with FileLock(lock):
        try:
            if path.exists():
                return _known(path, preset)
        except SettingsError:
            if not overwrite:
                raise
        fitted = fit_statistics(training, preset, size)
        with replacing(path) as partial:
            partial.write_text(json.dumps(fitted.record(), indent=4) + "\n", encoding="utf-8")
    return fitted


def _known(path: Path, preset: SlicePreset) -> SlicePreset:
    """The preset in the file; SettingsError if it is another one."""
    known = find_preset(path)
    if not same_but_statistics(known, preset):
        raise SettingsError(
            f"'{path}': statistics of preset '{known.name}' instead of '{preset.name}'; "
            "choose another folder, or overwrite to fit them anew"
        )
    return known
