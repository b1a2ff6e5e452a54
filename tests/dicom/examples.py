"""Series and slides with heatmaps whose every value and place is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian

from monai_mil.dicom import Algorithm
from monai_mil.heatmaps import Heatmap, ScanHeatmap, SlideFrame, assemble
from monai_mil.scans import Scan
from tests.scans.conftest import phantom, write_series

ALGORITHM = Algorithm(
    "INSIGHT for CT", "0.1.0", "0845377f018b", {"operating_points": [0.4]}, "trained on synthetic data"
)
CALLED = {"called": True, "finding": "positive", "finding_probability": 0.8, "operating_point": 0.4}
LESION = np.array([6.0, 9.0, 11.0])
"""Where the lesion is planted, LPS, mm."""
SPACING = (0.9, 0.6)


def series(
    folder: Path, orientation: Any, step: Any, n: int = 9, rows: int = 24, columns: int = 32, **tags: Any
) -> Path:
    """A series whose middle pixel lies near the lesion; slice i is i steps (mm, LPS) from the first."""
    along, down = np.array(orientation, float).reshape(2, 3)
    step = np.asarray(step, float)
    middle = step * (n // 2) + along * SPACING[1] * (columns // 2 - 3) + down * SPACING[0] * (rows // 2 + 2)
    origins = LESION - middle + np.arange(n)[:, None] * step
    facts = {"ImageOrientationPatient": np.array(orientation, float).tolist(), "PixelSpacing": list(SPACING)}
    return write_series(folder, phantom(n, rows, columns), origins, **(facts | tags))


def plain_series(folder: Path, **tags: Any) -> Path:
    return series(folder, (1, 0, 0, 0, 1, 0), (0, 0, 2.5), **tags)


def planted(scan: Scan, width_mm: float = 3.0, **changes: Any) -> ScanHeatmap:
    """A map with one score a pixel: a ball of ``width_mm`` around the lesion."""
    frame = scan.frame
    side = max(frame.size)
    top, left = ((side - length) // 2 for length in frame.size)
    row, column = np.meshgrid(np.arange(side) - top, np.arange(side) - left, indexing="ij")
    across = column[..., None] * frame.spacing[1] * frame.orientation[0]
    places = frame.origins[:, None, None] + across + row[..., None] * frame.spacing[0] * frame.orientation[1]
    scores = np.exp(-(np.linalg.norm(places - LESION, axis=-1) ** 2) / (2 * width_mm**2)).astype(np.float32)
    facts = {"name": "heatmap", "attributes": CALLED, "threshold": 0.3}
    return ScanHeatmap(frame, scores, **(facts | changes))


def read(path: Path) -> Any:
    return pydicom.dcmread(path)


def values_of(dataset: Any) -> np.ndarray:
    """The frames of a map or segmentation, ``[n, rows, columns]``."""
    if "FloatPixelData" in dataset:
        shape = (int(dataset.NumberOfFrames), dataset.Rows, dataset.Columns)
        return np.frombuffer(dataset.FloatPixelData, "<f4").reshape(shape)
    return dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)


def places_of(dataset: Any) -> np.ndarray:
    """Where the centre of every pixel of a map or segmentation of a series lies, LPS, mm: ``[n, rows, columns, 3]``."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    down, across = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    turn = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    origins = np.array([frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames_of(dataset)], float)
    row, column = np.meshgrid(np.arange(dataset.Rows), np.arange(dataset.Columns), indexing="ij")
    return origins[:, None, None] + column[..., None] * across * turn[0] + row[..., None] * down * turn[1]


def frames_of(dataset: Any) -> Any:
    return dataset.PerFrameFunctionalGroupsSequence


def instance_of(frame: Any) -> tuple[str, int]:
    """The instance and frame that a frame was made of."""
    image = frame.DerivationImageSequence[0].SourceImageSequence[0]
    return str(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber") or 1)


def slide_map(path: Path, size: tuple[int, int] = (256, 192), **changes: Any) -> Heatmap:
    """Four blocks of 4 x 4 tokens and one tile above all others; the slide is a DICOM file at ``path``."""
    from tests.slides.test_dicom import IMAGE, tiles, write

    write(path, [tile.tobytes() for tile in tiles(IMAGE)], ExplicitVRLittleEndian, "RGB", size=size)
    coords = np.stack(np.meshgrid(np.arange(0, 256, 64), np.arange(0, 192, 64)), axis=-1).reshape(-1, 2)
    scores = np.random.default_rng(0).random((len(coords), 4, 4)).astype(np.float32) * 0.5
    scores[5] = 0.9
    frame = SlideFrame(path.stem, str(path), size, 0.5, 64.0)
    facts = {"name": "heatmap", "attributes": CALLED, "threshold": 0.7}
    return assemble(scores[:-1], coords[:-1], frame, **(facts | changes))
