"""One scan of a cohort.

A scan takes seconds to minutes, so that one whose run was killed is made anew rather than resumed within.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_mil.bags.embed_ct import ScanSettings, embed_scan, slice_coords
from monai_mil.bags.embed_job import CaseKind, EmbedJob, OnInstances
from monai_mil.bags.file import BagFile
from monai_mil.bags.info import BagInfo
from monai_mil.scans import load_scan

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

    def embed(self, encoder: Encoder, on_instances: OnInstances) -> tuple[int, tuple[str, ...]]:
        """Read the scan and write its bag; returns the number of slices and the scan's remarks."""
        scan = load_scan(self.path, series_uid=self.series_uid, allow_gaps=self.settings.allow_gaps)
        n, done, parts = len(scan), 0, []
        on_instances(0, n)
        for features in embed_scan(scan, encoder, self.settings.preset, chunk=self.chunk):
            parts.append(features.cpu().numpy())
            done += len(features)
            on_instances(done, n)
        info = self.settings.info(scan.frame, encoder, self.case_id)
        extras = {"positions_mm": scan.frame.positions_mm, "sop_uids": np.array(scan.frame.sop_uids)}
        BagFile.write(self.bag, np.concatenate(parts), slice_coords(n), info, extras)
        return n, scan.remarks

    def wanted(self, found: BagInfo) -> dict[str, Any]:
        """The preset in every detail, and the series where one is named."""
        series = {} if self.series_uid is None else {"series_uid": self.series_uid}
        return _named(self.settings.preset.record()) | series

    def said(self, found: BagInfo) -> dict[str, Any]:
        """The bag's own preset and series."""
        series_uid = None if found.scan is None else found.scan.series_uid
        return super().said(found) | _named(found.preset or {}) | {"series_uid": series_uid}


def _named(preset: dict[str, Any]) -> dict[str, Any]:
    return {f"preset {name}": value for name, value in preset.items()}
