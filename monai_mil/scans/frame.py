"""Where the slices of a scan lie in the patient: no pixels, no patient identity."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from monai_mil.errors import ScanReadError
from monai_mil.scans.turn import Turn

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TOLERANCE = 0.02
_ENDS = ("SI", "PA", "LR")
_STRAIGHT_PIXELS = 0.5
_GAP = 1.8


@dataclass(frozen=True, eq=False)
class ScanFrame:
    """The geometry and identity of ``n`` parallel slices, in ascending order along their normal.

    Attributes:
        scan_id: the scan's name in tables and files.
        path: the folder or file it was read from.
        size: rows and columns of a slice.
        spacing: mm between rows, mm between columns (the order of DICOM's PixelSpacing).
        orientation: float64 ``[2, 3]``, LPS: the direction along a row (increasing column), then along a column.
        origins: float64 ``[n, 3]``, LPS, mm: the centre of each slice's first pixel.
        sop_uids: SOPInstanceUID of each slice; ``""`` where the format has none.
        frame_numbers: the slice's 1-based frame within that instance.
        study_uid: StudyInstanceUID, or ``""``.
        series_uid: SeriesInstanceUID, or ``""``.
        frame_of_reference_uid: FrameOfReferenceUID, or ``""``.
        thickness: SliceThickness in mm, or 0 where unknown; the step of a scan with one slice, nothing else. Negative
            in a volume's own grid whose slices step against their normal.
        acquisition: which of several acquisitions of the series was chosen, or ``""``.
        turned_from: the slices as the source has them, in its own axes and order (those of a volume file along its
            third axis); None where it has these.
        turn: what makes these slices of the source's; None likewise.
    """

    scan_id: str
    path: str | None
    size: tuple[int, int]
    spacing: tuple[float, float]
    orientation: np.ndarray
    origins: np.ndarray
    sop_uids: tuple[str, ...]
    frame_numbers: tuple[int, ...]
    study_uid: str = ""
    series_uid: str = ""
    frame_of_reference_uid: str = ""
    thickness: float = 0.0
    acquisition: str = ""
    turned_from: ScanFrame | None = None
    turn: Turn | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "orientation", _read_only(self.orientation))
        object.__setattr__(self, "origins", _read_only(self.origins))
        n = len(self.origins)
        if self.orientation.shape != (2, 3) or n == 0 or self.origins.shape != (n, 3):
            raise ValueError(
                f"orientation must be [2, 3] and origins [n >= 1, 3], "
                f"not {self.orientation.shape} and {self.origins.shape}"
            )
        if len(self.sop_uids) != n or len(self.frame_numbers) != n:
            raise ValueError(
                f"{n} slices need {n} sop_uids and frame_numbers, "
                f"not {len(self.sop_uids)} and {len(self.frame_numbers)}"
            )

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def normal(self) -> np.ndarray:
        """The unit vector across the slices, ``[3]``, LPS: row direction x column direction."""
        return np.cross(self.orientation[0], self.orientation[1])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows and columns."""
        return (len(self), *self.size)

    @property
    def steps(self) -> np.ndarray:
        """The way from a voxel to the next along slices, rows and columns, ``[3, 3]``, LPS, mm; slices on average."""
        rows, columns = self.spacing
        return np.stack([self._mean_step(), self.orientation[1] * rows, self.orientation[0] * columns])

    @property
    def source(self) -> ScanFrame:
        """The slices as the source has them: what is written lies on their grid."""
        return self if self.turned_from is None else self.turned_from

    @property
    def instances(self) -> ScanFrame:
        """The slices a table lists: these, or the source's where it has instances and they were cut across."""
        cut_across = self.turn is not None and not self.turn.keeps_slices and any(self.source.sop_uids)
        return self.source if cut_across else self

    def to_source(self, volume: np.ndarray) -> np.ndarray:
        """Values of these voxels ``[n, rows, columns]`` in the order of the source's, :attr:`source`; a view."""
        return volume if self.turn is None else self.turn.undo(volume)

    def lps_turn(self) -> Turn:
        """What brings the slices into the patient's orientation; ``Turn()`` where they lie so."""
        steps = self.steps
        return Turn.to_patient(steps / np.linalg.norm(steps, axis=1, keepdims=True))

    @property
    def axis_codes(self) -> str:
        """Where columns, rows and slices run in the patient, by the nearest axis: ``"LPS"`` of a usual axial scan."""
        turn = self.lps_turn()
        nearest = [turn.axes.index(axis) for axis in (2, 1, 0)]
        return "".join(_ENDS[place][turn.flips[place]] for place in nearest)

    @property
    def positions_mm(self) -> np.ndarray:
        """Each slice's position along the normal, float64 ``[n]``, ascending."""
        return self.origins @ self.normal

    @property
    def is_regular(self) -> bool:
        """Whether every slice lies where a constant step from its neighbour puts it (within 2 % of the step)."""
        if len(self) <= 2:
            return True
        even = self.origins[0] + np.arange(len(self))[:, None] * self._mean_step()
        return bool(np.abs(self.origins - even).max() <= _TOLERANCE * np.linalg.norm(self._mean_step()))

    @property
    def even_origins(self) -> np.ndarray:
        """Where the even steps that fit the slices best would put them, float64 ``[n, 3]``."""
        if self.is_regular:
            return self.origins
        index = np.arange(len(self))
        step, first = np.polyfit(index, self.origins, 1)
        return np.asarray(first + index[:, None] * step)

    @property
    def is_nearly_even(self) -> bool:
        """Whether the slices lie off even steps as rounded positions do: no gap, and each nearest to its own place."""
        if self.is_regular:
            return True
        even = self.even_origins
        step = float(np.linalg.norm(even[1] - even[0]))
        off = float(np.linalg.norm(self.origins - even, axis=1).max())
        return self.is_straight and off < step / 2 and float(np.diff(self.positions_mm).max()) < _GAP * step

    @property
    def affine(self) -> np.ndarray:
        """float64 ``[4, 4]`` from (column, row, slice) indices to RAS+ mm; a gantry tilt is a shear in it.

        ``nibabel.Nifti1Image(scan.hu.T, frame.affine)`` is the scan. One slice steps by its thickness, or 1 mm.

        Raises:
            ScanReadError: the slices are unevenly spaced or no straight stack, so no affine is right.
        """
        if not self.is_regular:
            how = (
                f"are unevenly spaced ({describe_spacings(self.spacings())})"
                if len(self.spacings()) > 1 or self.is_straight
                else f"lie up to {self.off_line_mm:.1f} mm beside one straight line"
            )
            raise ScanReadError(
                f"scan '{self.scan_id}': its slices {how}, so no single affine is right; use slice_affine(i) for each "
                "slice or even_affine, or resample the scan"
            )
        return self._affine(0, self._mean_step())

    @property
    def even_affine(self) -> np.ndarray:
        """As :attr:`affine`, for every scan: of slices that are not even by the even steps that fit them best."""
        if self.is_regular:
            return self.affine
        even = self.even_origins
        affine = self._affine(0, even[1] - even[0])
        affine[:3, 3] = even[0] * (-1, -1, 1)
        return affine

    def slice_affine(self, index: int) -> np.ndarray:
        """float64 ``[4, 4]`` from (column, row, 0) of slice ``index`` to RAS+ mm; exact for every scan."""
        return self._affine(index, self.normal)

    @property
    def tilt_degrees(self) -> float:
        """The angle between the slices' normal and the direction from slice to slice: the gantry's tilt."""
        if len(self) < 2:
            return 0.0
        step = self._mean_step()
        return math.degrees(math.atan2(np.linalg.norm(np.cross(self.normal, step)), float(self.normal @ step)))

    @property
    def off_line_mm(self) -> float:
        """How far, at most, a slice is shifted within its plane from the straight line of first and last slice, mm."""
        along = self.positions_mm - self.positions_mm[0]
        if along[-1] == 0:
            return 0.0
        drift = (self.origins[-1] - self.origins[0]) / along[-1]
        return float(np.linalg.norm(self.origins - self.origins[0] - np.outer(along, drift), axis=1).max())

    @property
    def is_straight(self) -> bool:
        """Whether the slices lie on one straight line, to half a pixel; a tilted gantry's do."""
        return self.off_line_mm <= _STRAIGHT_PIXELS * min(self.spacing)

    def spacings(self) -> tuple[tuple[int, float], ...]:
        """Runs of equal distances between slices along the normal, in order: ``(number of distances, mm)``."""
        runs: list[list[float]] = []
        for distance in np.diff(self.positions_mm):
            if runs and abs(distance - runs[-1][0]) <= _TOLERANCE * runs[-1][0]:
                runs[-1].append(distance)
            else:
                runs.append([distance])
        return tuple((len(run), round(float(np.mean(run)), 4)) for run in runs)

    def to_json(self) -> str:
        """The whole frame as one JSON object; floats keep every digit."""
        return json.dumps(self._record())

    def _record(self) -> dict[str, Any]:
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields |= {"orientation": self.orientation.tolist(), "origins": self.origins.tolist()}
        source, turn = fields.pop("turned_from"), fields.pop("turn")
        if source is not None and turn is not None:
            fields |= {"turned_from": source._record(), "turn": asdict(turn)}
        return fields

    @classmethod
    def from_json(cls, text: str) -> ScanFrame:
        """The inverse of :meth:`to_json`."""
        return cls._from_record(json.loads(text))

    @classmethod
    def _from_record(cls, fields: dict[str, Any]) -> ScanFrame:
        known = dict(fields)
        known |= {name: np.array(fields[name], float) for name in ("orientation", "origins")}
        known |= {name: tuple(fields[name]) for name in ("size", "spacing", "sop_uids", "frame_numbers")}
        if "turn" in fields:
            known["turned_from"] = cls._from_record(fields["turned_from"])
            known["turn"] = Turn(**{name: tuple(values) for name, values in fields["turn"].items()})
        return cls(**known)

    def _mean_step(self) -> np.ndarray:
        if len(self) < 2:
            return self.normal * (self.thickness or 1.0)
        return (self.origins[-1] - self.origins[0]) / (len(self) - 1)

    def _affine(self, index: int, step: np.ndarray) -> np.ndarray:
        lps = np.eye(4)
        lps[:3, 0] = self.orientation[0] * self.spacing[1]
        lps[:3, 1] = self.orientation[1] * self.spacing[0]
        lps[:3, 2] = step
        lps[:3, 3] = self.origins[index]
        return LPS_TO_RAS @ lps


def describe_spacings(spacings: tuple[tuple[int, float], ...]) -> str:
    """Runs of slice distances in words: ``13 x 4 mm, then 14 x 7 mm``; long lists are cut."""
    shown = ", then ".join(f"{count} x {round(mm, 3):g} mm" for count, mm in spacings[:6])
    return f"{shown}, and {len(spacings) - 6} more" if len(spacings) > 6 else shown


def _read_only(array: np.ndarray) -> np.ndarray:
    copy = np.array(array, np.float64)
    copy.flags.writeable = False
    return copy
