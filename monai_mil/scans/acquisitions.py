"""Several acquisitions, phases or passes in one series: told apart, and never woven into one scan."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from monai_mil.errors import ScanReadError
from monai_mil.scans.dicom import DicomSlice

_SAME_PLACE_MM = 0.01
_SAME_STEP = 0.05
_FEWEST_OF_A_COMB = 3
_PLAINLY_NEARER = 0.7
_MOST_SHOWN = 12


@dataclass(frozen=True)
class Pass:
    """The slices of one way along the patient, and what ``acquisition`` calls it."""

    label: str
    slices: tuple[DicomSlice, ...]


def choose_acquisition(name: str, slices: list[DicomSlice], acquisition: str | None) -> list[DicomSlice]:
    """The slices of one acquisition of a series.

    Args:
        name: what errors call the scan.
        slices: those of one series, of one orientation.
        acquisition: which one: an AcquisitionNumber, or what the error calls it; None where there is only one.

    Raises:
        ScanReadError: there are several that cover the same stretch, or none of that name; lists them.
    """
    found = passes(slices)
    if acquisition is None:
        if len(found) == 1:
            return slices
        raise ScanReadError(
            f"scan '{name}': different images at the same place, or slices of several acquisitions woven into one "
            f"another: {_listed(found)}; choose one with acquisition (--acquisition, a table's column)"
        )
    numbered = [one.named() for one in _grouped(slices, lambda piece: piece.acquisition)]
    offered = {one.label: one for one in [*numbered, *found]}
    if acquisition not in offered:
        raise ScanReadError(f"scan '{name}': no acquisition '{acquisition}'; it has {_listed(offered.values())}")
    return list(offered[acquisition].slices)


def passes(slices: list[DicomSlice]) -> list[Pass]:
    """The passes of a series, one where its slices follow one another.

    Numbers of acquisitions and of phases tell them apart where their stretches overlap. Times and the order of
    InstanceNumber do where, besides, the slices together lie unevenly or at the same places; at last the places alone,
    where two even combs of slices stand in one another.
    """
    whole = [Pass("1", tuple(slices))]
    places = _places(slices)
    if places is None:
        return whole
    for number in (lambda piece: piece.acquisition, lambda piece: piece.phase):
        groups = _grouped(slices, number)
        merged = _merged(groups, places) if len(groups) <= max(len(slices) / 2, 2) else []
        if len(merged) > 1:
            return [one.named() for one in merged]
    if _is_even(sorted(places.values())):
        return whole
    for number in (lambda piece: piece.acquisition, lambda piece: piece.time, lambda piece: piece.file.instance_number):
        groups = _grouped(slices, number)
        if all(one.numbers for one in groups):
            merged = _merged(groups if len(groups) <= len(slices) / 2 else _runs(groups, places), places)
            if len(merged) > 1 and _are_more_even(merged, places):
                return _unnamed(merged)
    return _unnamed(_combs(places)) or whole


def _unnamed(groups: Iterable[_Group]) -> list[Pass]:
    return [Pass(f"pass-{index}", group.slices) for index, group in enumerate(groups, 1)]


@dataclass(frozen=True)
class _Group:
    """Slices with the numbers or times they have in common; without any where they say none."""

    numbers: tuple[float, ...]
    slices: tuple[DicomSlice, ...]

    def named(self) -> Pass:
        if not self.numbers:
            return Pass("unnumbered", self.slices)
        first, last = f"{self.numbers[0]:.0f}", f"{self.numbers[-1]:.0f}"
        return Pass(first if first == last else f"{first}-{last}", self.slices)


def _places(slices: Sequence[DicomSlice]) -> dict[DicomSlice, float] | None:
    """Where along their normal the slices lie, mm; None where not all of them say."""
    orientation = next((piece.orientation for piece in slices if piece.orientation is not None), None)
    origins = [piece.origin for piece in slices if piece.origin is not None]
    if len(origins) < len(slices) or not np.isfinite(origins).all():
        return None
    normal = np.array([0.0, 0.0, 1.0]) if orientation is None else np.cross(*orientation)
    return dict(zip(slices, (np.array(origins) @ normal).tolist(), strict=True))


def _grouped(slices: Iterable[DicomSlice], number: Callable[[DicomSlice], float | None]) -> list[_Group]:
    groups: dict[tuple[float, ...], list[DicomSlice]] = defaultdict(list)
    for piece in slices:
        found = number(piece)
        groups[() if found is None else (found,)].append(piece)
    return [_Group(numbers, tuple(groups[numbers])) for numbers in sorted(groups)]


def _runs(groups: list[_Group], places: dict[DicomSlice, float]) -> list[_Group]:
    """Slices in the order of their groups, parted where they turn back along the patient."""
    runs: list[list[DicomSlice]] = [[]]
    way = 0.0
    for piece in (piece for group in groups for piece in group.slices):
        step = float(np.sign(round(places[piece] - places[runs[-1][-1]], 2))) if runs[-1] else 0.0
        if way and step == -way:
            way, turned = (step, [runs[-1].pop()]) if _ends_oddly(runs[-1], places) else (0.0, [])
            runs.append([*turned, piece])
        else:
            way = way or step
            runs[-1].append(piece)
    return [_Group((float(index),), tuple(run)) for index, run in enumerate(runs, 1)]


def _ends_oddly(run: list[DicomSlice], places: dict[DicomSlice, float]) -> bool:
    """Whether the last slice lies off the even steps before it: there the next pass begins, on its way back."""
    steps = np.abs(np.diff([places[piece] for piece in run]))
    return len(steps) > 2 and np.ptp(steps[:-1]) <= _SAME_STEP * steps[0] < abs(steps[-1] - steps[0])


def _merged(groups: list[_Group], places: dict[DicomSlice, float]) -> list[_Group]:
    """Groups that follow one another along the patient joined, each with the first it does not overlap."""
    merged: list[_Group] = []
    for group in groups:
        for index, other in enumerate(merged):
            if not _overlap([places[piece] for piece in other.slices], [places[piece] for piece in group.slices]):
                merged[index] = _Group(other.numbers + group.numbers, other.slices + group.slices)
                break
        else:
            merged.append(group)
    return merged


def _combs(places: dict[DicomSlice, float]) -> list[_Group]:
    """Two combs of slices, each with the same even steps, that stand in one another; none where there is anything else.

    Where they do, neighbours lie at two distances in turn: by less than a third they differ where places are rounded.
    """
    ordered = sorted(places, key=lambda piece: places[piece])
    z = np.array([places[piece] for piece in ordered])
    steps = np.diff(z)
    if len(z) < 2 * _FEWEST_OF_A_COMB:
        return []
    for step in (steps[0], steps[0] + steps[1], steps[-1], steps[-1] + steps[-2]):
        offset = np.abs((z - z[0] + step / 2) % step - step / 2)
        combs = [np.flatnonzero(part) for part in (offset <= _SAME_STEP * step, offset > _SAME_STEP * step)]
        if all(_is_comb(z[comb], step) for comb in combs) and _stand_in_one_another(z, z[combs[0]], z[combs[1]]):
            return [_Group((), tuple(ordered[index] for index in comb)) for comb in combs]
    return []


def _stand_in_one_another(z: np.ndarray, first: np.ndarray, second: np.ndarray) -> bool:
    both = z[(z >= max(first[0], second[0])) & (z <= min(first[-1], second[-1]))]
    steps = np.diff(both)
    return len(steps) > 1 and bool(steps.min() < _PLAINLY_NEARER * steps.max())


def _is_comb(z: np.ndarray, step: float) -> bool:
    return len(z) >= _FEWEST_OF_A_COMB and bool(np.abs(np.diff(z) - step).max() <= _SAME_STEP * step)


def _overlap(first: list[float], second: list[float]) -> bool:
    """Whether several slices of one lie within the stretch of the other, or one deep in it: else it is their seam."""

    def within(some: list[float], others: list[float]) -> int:
        low, high = min(others) - _SAME_PLACE_MM, max(others) + _SAME_PLACE_MM
        return sum(low <= place <= high for place in some)

    few, many = sorted((sorted(first), sorted(second)), key=len)
    if len(few) == 1:
        is_deep = len(many) > 3 and many[1] < few[0] < many[-2]
        return is_deep or min(abs(few[0] - place) for place in many) <= _SAME_PLACE_MM
    return max(within(first, second), within(second, first)) > 1


def _is_even(places: list[float]) -> bool:
    steps = np.diff(places)
    return len(steps) < 2 or bool(steps.min() > _SAME_PLACE_MM and np.ptp(steps) <= _SAME_STEP * steps.max())


def _are_more_even(groups: list[_Group], places: dict[DicomSlice, float]) -> bool:
    """Whether no group has two slices at one place, and one of several slices lies evenly."""
    found = [sorted(places[piece] for piece in group.slices) for group in groups]
    nowhere_twice = all(len(one) < 2 or np.diff(one).min() > _SAME_PLACE_MM for one in found)
    return nowhere_twice and any(len(one) > 2 and _is_even(one) for one in found)


def _listed(found: Iterable[Pass]) -> str:
    found = list(found)
    shown = ", ".join(f"{len(one.slices)} of acquisition {one.label}{_extent(one)}" for one in found[:_MOST_SHOWN])
    return f"{shown} and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else shown


def _extent(one: Pass) -> str:
    places = _places(one.slices)
    return "" if places is None else f" ({min(places.values()):g} to {max(places.values()):g} mm)"
