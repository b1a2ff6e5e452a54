"""The preset of a cohort's scans: from the file that an earlier run has left, or fitted on the training split."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from monai_mil.errors import SettingsError
from monai_mil.files import make_folder, replacing
from monai_mil.locks import locked
from monai_mil.scans import Scan, SlicePreset, find_preset, fit_statistics, same_but_statistics

logger = logging.getLogger(__name__)

PRESET_FILE = "preset.json"


def fitted_preset(
    preset: SlicePreset, out_dir: Path, training: Iterable[Scan], size: int, *, overwrite: bool = False
) -> SlicePreset:
    """The preset with the statistics in ``<out_dir>/preset.json``, which are fitted first where there are none.

    A file that cannot be read counts as not there, and is told.

    Args:
        preset: one without statistics.
        out_dir: folder of the bags; runs that share it fit once.
        training: the scans of the training split.
        size: side of the slices the encoder takes, px.
        overwrite: fit anew where the file is another preset's.

    Raises:
        SettingsError: the file is another preset's, or there is no scan to fit on.
        OutputError: the file cannot be written.
    """
    path = out_dir / PRESET_FILE
    lock = out_dir / ".partial" / f"{PRESET_FILE}.lock"
    make_folder(lock.parent)
    with locked(lock):
        try:
            known = _known(path, preset)
            if known is not None:
                return known
        except SettingsError:
            if not overwrite:
                raise
        fitted = fit_statistics(training, preset, size)
        with replacing(path) as partial:
            partial.write_text(json.dumps(fitted.record(), indent=4) + "\n", encoding="utf-8")
    return fitted


def _known(path: Path, preset: SlicePreset) -> SlicePreset | None:
    """The preset in the file, None where there is none that can be read; SettingsError if it is another one."""
    if not path.exists():
        return None
    try:
        known = find_preset(path)
    except SettingsError as error:
        logger.warning("%s; its statistics are fitted anew", str(error).partition(";")[0])
        return None
    if not same_but_statistics(known, preset):
        raise SettingsError(
            f"'{path}': statistics of preset '{known.name}' instead of '{preset.name}'; "
            "choose another folder, or overwrite to fit them anew"
        )
    return known
