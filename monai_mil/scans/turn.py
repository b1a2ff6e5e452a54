"""From the axes of a scan's source to those of the patient, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_OF_TIES = 1e-4


@dataclass(frozen=True)
class Turn:
    """A permutation and mirroring of a volume's axes ``[slice, row, column]``; no voxel changes.

    Attributes:
        axes: the source's axis that becomes slices, rows and columns: 0 its slices, 1 its rows, 2 its columns.
        flips: whether slices, rows and columns run against the source's axis.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.scans import Turn
        >>> turn = Turn.to_patient(np.array([[0.0, 1, 0], [0, 0, -1], [1, 0, 0]]))  # coronal slices, the head on top
        >>> turn.axes, turn.flips
        ((1, 0, 2), (True, False, False))
        >>> volume = np.arange(24).reshape(2, 3, 4)
        >>> bool((turn.undo(turn.apply(volume)) == volume).all())
        True
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @classmethod
    def to_patient(cls, directions: np.ndarray) -> Turn:
        """The turn after which slices run to the head, rows to the back and columns to the patient's left.

        Slices run along the axis nearest to the patient's z; of the two others, columns and rows are chosen so that
        they lie nearest to x and y. In whatever order the source has its axes, the same volume comes out.

        Args:
            directions: unit vectors of the source's slices, rows and columns, LPS, ``[3, 3]``.
        """
        across = int(_nearness(directions, 2).argmax())
        one, other = (axis for axis in range(3) if axis != across)
        straight = _nearness(directions, 1)[one] + _nearness(directions, 0)[other]
        crossed = _nearness(directions, 1)[other] + _nearness(directions, 0)[one]
        row, column = (one, other) if straight >= crossed else (other, one)
        axes = (across, row, column)
        flips = [bool(directions[axis, world] < 0) for axis, world in zip(axes, (2, 1, 0), strict=True)]
        return cls(axes, (flips[0], flips[1], flips[2]))

    @property
    def keeps_all(self) -> bool:
        """Whether it changes nothing."""
        return self == Turn()

    @property
    def keeps_slices(self) -> bool:
        """Whether the slices are still the source's, in whatever order."""
        return self.axes[0] == 0

    def apply(self, volume: np.ndarray) -> np.ndarray:
        """The source's volume ``[slice, row, column]`` as the patient's; a view."""
        return np.flip(volume.transpose(self.axes), self._flipped)

    def undo(self, volume: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`apply`; a view."""
        return np.flip(volume, self._flipped).transpose(np.argsort(self.axes))

    def indices(self, shape: tuple[int, int, int]) -> np.ndarray:
        """float64 ``[4, 4]`` from the source's indices (column, row, slice) to the turned volume's.

        Args:
            shape: slices, rows and columns of the turned volume.
        """
        matrix = np.eye(4)
        matrix[:3, :3] = 0
        for axis, (source, flip, length) in enumerate(zip(self.axes, self.flips, shape, strict=True)):
            matrix[2 - axis, 2 - source] = -1 if flip else 1
            matrix[2 - axis, 3] = length - 1 if flip else 0
        return matrix

    @property
    def _flipped(self) -> tuple[int, ...]:
        return tuple(axis for axis, flip in enumerate(self.flips) if flip)


def _nearness(directions: np.ndarray, world: int) -> np.ndarray:
    """How near each axis lies to one of the patient's, ``[3]``.

    Where two are as near, as at 45 degrees, the one that turns the same way wins, whatever order the source has.
    """
    towards = directions * np.sign(directions[:, [world]])
    return np.asarray(towards[:, world] + _OF_TIES * (towards[:, world - 1] + 0.5 * towards[:, world - 2]))
