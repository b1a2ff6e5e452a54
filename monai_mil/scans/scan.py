"""One CT scan in memory: Hounsfield units and where they lie."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from monai_mil.scans.frame import ScanFrame


@dataclass(frozen=True, eq=False)
class Scan:
    """A CT scan; made by :func:`load_scan`.

    Attributes:
        frame: the geometry and identity of the slices.
        hu: Hounsfield units, int16 (where that is exact) or float32, ``[n, rows, columns]``.
        patient_id: PatientID, or ``""``; it stays here: no other field, message or ``repr`` holds it.
        remarks: what a reader of the result should know: repairs, gantry tilt, several spacings, padding.
    """

    frame: ScanFrame
    hu: np.ndarray
    patient_id: str = field(default="", repr=False)
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        expected = (len(self.frame), *self.frame.size)
        if self.hu.shape != expected:
            raise ValueError(f"the frame describes [n, rows, columns] = {expected}, the pixels are {self.hu.shape}")

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def scan_id(self) -> str:
        """The scan's name in tables and files."""
        return self.frame.scan_id

    @property
    def affine(self) -> np.ndarray:
        """As :attr:`ScanFrame.affine`."""
        return self.frame.affine

    def __repr__(self) -> str:
        rows, columns = self.frame.size
        return f"Scan('{self.scan_id}', {len(self)} slices of {rows} x {columns}, {self.hu.dtype})"
