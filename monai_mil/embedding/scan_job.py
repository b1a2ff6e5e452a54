"""One scan of a cohort.

A scan takes seconds to minutes, so that one whose run was killed is made anew rather than resumed within.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_mil.bags import BagFile, BagInfo
from monai_mil.embedding.job import CaseKind, EmbedJob, OnInstances, number_type
from monai_mil.embedding.scan import ScanSettings, embed_scan, scan_coords
from monai_mil.scans import ORIENTATION, Depth, as_uid, files_touched, load_scan, scan_files

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder

SCANS = CaseKind("scan", "slices")


@dataclass(frozen=True)
class ScanJob(EmbedJob):
    """A scan, the series to take of its folder, how its slices are prepared and how many are encoded at once."""

    kind = SCANS

    settings: ScanSettings
    chunk: int
    series_uid: str | None = None
    acquisition: str | None = None

    def embed(self, encoder: Encoder, on_instances: OnInstances) -> tuple[int, tuple[str, ...]]:
        """Read the scan and write its bag; returns the number of slices and the scan's remarks."""
        settings, (source, stamp) = self.settings, self.source()
        scan = load_scan(
            self.path, series_uid=self.series_uid, acquisition=self.acquisition, allow_gaps=settings.allow_gaps
        )
        settings.check_units(scan)
        info = dataclasses.replace(
            settings.info(scan.frame, encoder, self.case_id, settings.find_lungs(scan), scan.remarks),
            encoder_dtype=number_type(encoder),
            source=source,
            source_stamp=stamp,
        )
        coords, done, parts = scan_coords(info), 0, []
        n = len(coords)
        on_instances(0, n)
        steps = embed_scan(scan, encoder, settings.preset, chunk=self.chunk, depth=settings.layers, lungs=info.lungs)
        for features in steps:
            parts.append(features.cpu().numpy())
            done += len(features)
            on_instances(done, n)
        extras = _extras(info, coords)
        BagFile.write(self.bags[0], np.concatenate(parts), coords, info, extras, self.storage)
        return n, scan.remarks

    def source_files(self) -> tuple[Path, ...]:
        """The files of the scan's slices."""
        return scan_files(self.path, self.series_uid, self.acquisition)

    def touched_files(self) -> tuple[Path, ...]:
        """All files of the scan's folder: which of them are its slices their headers say."""
        return files_touched(self.path)

    def required_settings(self, bag: Path, found: BagInfo) -> dict[str, Any]:
        """The preset in every detail, depth, lungs and orientation, and series and acquisition where one is named."""
        series_uid = None if self.series_uid is None else as_uid(self.series_uid)
        named = {"series_uid": series_uid, "acquisition": self.acquisition}
        part = {name: value for name, value in named.items() if value is not None}
        cut = {"depth": _in_words(self.settings.layers), "lungs": self.settings.lungs, "orientation": ORIENTATION}
        return _named(self.settings.preset.record()) | cut | part

    def remarks_on(self, found: BagInfo) -> tuple[str, ...]:
        """What the reader said when the bag was made."""
        return found.remarks

    def recorded_settings(self, found: BagInfo) -> dict[str, Any]:
        """The bag's own preset, depth, lungs, series, acquisition and orientation."""
        own = {
            "depth": _in_words(found.depth),
            "lungs": None if found.lungs is None else found.lungs.method,
            "series_uid": None if found.scan is None else as_uid(found.scan.series_uid),
            "acquisition": None if found.scan is None else found.scan.acquisition,
            "orientation": None if found.scan is None else found.scan.axis_codes,
        }
        return super().recorded_settings(found) | _named(found.preset or {}) | own


def _extras(info: BagInfo, coords: np.ndarray) -> dict[str, np.ndarray]:
    """Where the instances lie, and whose pixels they are where each is one slice."""
    assert info.scan is not None
    positions = info.positions_mm()
    assert positions is not None
    if info.depth is not None and info.depth.mode == "resize":
        return {"positions_mm": positions}
    return {"positions_mm": positions, "sop_uids": np.array(info.scan.sop_uids)[coords[:, 0]]}


def _in_words(depth: Depth | None) -> str | None:
    return None if depth is None else f"{depth.layers} ({depth.mode})"


def _named(preset: dict[str, Any]) -> dict[str, Any]:
    return {f"preset {name}": value for name, value in preset.items()}
