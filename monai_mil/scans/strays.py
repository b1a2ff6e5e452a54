"""Images within a series that are none of its slices: reformats, scouts, dose pages, screen saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

import numpy as np

from monai_mil.scans.dicom import DicomSlice
from monai_mil.scans.stack import missing_slices

_PAGES = ("DOSE", "DOSE_INFO", "SCREEN SAVE", "SCREEN_SAVE", "SCREENSAVE", "PROT", "CT_SOM5 PROT", "CT_SOM7 PROT")
_REFORMATS = (
    "REFORMATTED",
    "MPR",
    "CSA MPR",
    "MPR THICK",
    "CPR",
    "MIP",
    "MINIP",
    "PROJECTION IMAGE",
    "VRT",
    "SSD",
    "3D",
)
_OTHER_PLANE = 0.05
"""How far a direction may differ, about 3 degrees: less is no other plane but a contradiction that is to be told."""
_SAME_PLACE_MM = 0.01


def without_strays(slices: list[DicomSlice]) -> tuple[list[DicomSlice], list[str]]:
    """The slices without the images that something else says they are no slices of this stack.

    They are told by ImageType where most say otherwise, by an orientation or a SliceThickness against the majority,
    and, of what is derived, by a place that a slice has already. An image whose absence would leave a hole in the stack
    is never left out by its geometry: then its header is at fault.

    Returns:
        What is left, in the order given; a remark for each kind left out.
    """
    remarks: list[str] = []
    slices = _without(slices, lambda piece: _is_any(piece, _PAGES), "dose pages or screen saves", remarks)
    slices = _without(slices, lambda piece: _is_any(piece, _REFORMATS), "reformats or projections (ImageType)", remarks)
    slices = _without_hole(slices, _of_another_plane(slices), "of another orientation than most", remarks)
    derived = {piece for piece in slices if _is_derived(piece)}
    slices = _without_hole(slices, derived & _unlike_most(slices, _size), "derived, and of another size", remarks)
    slices = _without_hole(slices, derived & _unlike_most(slices, _is_placed), "derived, without a place", remarks)
    slices = _without_hole(slices, _at_taken_places(slices, derived), "derived, where a slice lies already", remarks)
    thick = _of_their_acquisition(slices, _unlike_most(slices, _thickness))
    slices = _without_hole(slices, _between(slices, thick), "of another SliceThickness, between the others", remarks)
    return slices, remarks


def _without(
    slices: list[DicomSlice], is_stray: Callable[[DicomSlice], bool], what: str, remarks: list[str]
) -> list[DicomSlice]:
    """The slices less those that are strays, unless half of all or more are: then the series is of that kind."""
    strays = {piece for piece in slices if is_stray(piece)}
    if 2 * len(strays) >= len(slices):
        return slices
    return _less(slices, strays, what, remarks)


def _without_hole(slices: list[DicomSlice], strays: set[DicomSlice], what: str, remarks: list[str]) -> list[DicomSlice]:
    places = _places([piece for piece in slices if piece not in strays])
    if not strays or places is None or missing_slices(places):
        return slices
    return _less(slices, strays, what, remarks)


def _less(slices: list[DicomSlice], strays: set[DicomSlice], what: str, remarks: list[str]) -> list[DicomSlice]:
    if strays:
        names = [piece.name for piece in slices if piece in strays]
        shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        remarks.append(f"{len(names)} images of the series left out, {what}: {shown}")
    return [piece for piece in slices if piece not in strays]


def _is_any(piece: DicomSlice, kinds: tuple[str, ...]) -> bool:
    return any(value in kinds for value in piece.file.image_type)


def _is_derived(piece: DicomSlice) -> bool:
    return "DERIVED" in piece.file.image_type or "SECONDARY" in piece.file.image_type


def _unlike_most(slices: list[DicomSlice], what: Callable[[DicomSlice], Hashable]) -> set[DicomSlice]:
    """The slices unlike the majority; none where there is no majority."""
    counts = Counter(what(piece) for piece in slices)
    usual, count = counts.most_common(1)[0]
    if usual is None or 2 * count <= len(slices):
        return set()
    return {piece for piece in slices if what(piece) not in (usual, None)}


def _of_another_plane(slices: list[DicomSlice]) -> set[DicomSlice]:
    known = [piece for piece in slices if piece.orientation is not None and np.isfinite(piece.orientation).all()]
    counts = Counter(
        tuple(piece.orientation.ravel().round(3).tolist()) for piece in known if piece.orientation is not None
    )
    if len(counts) < 2:
        return set()
    usual = np.array(counts.most_common(1)[0][0]).reshape(2, 3)
    others = {p for p in known if p.orientation is not None and np.abs(p.orientation - usual).max() > _OTHER_PLANE}
    return others if 2 * len(others) < len(slices) else set()


def _at_taken_places(slices: list[DicomSlice], derived: set[DicomSlice]) -> set[DicomSlice]:
    """Derived slices at the place of one that is not, where those are the majority."""
    taken = _places([piece for piece in slices if piece not in derived])
    if taken is None or 2 * len(derived) >= len(slices):
        return set()
    places = {piece: _places([piece]) for piece in slices if piece in derived}
    return {
        piece for piece, place in places.items() if place is not None and np.abs(taken - place).min() <= _SAME_PLACE_MM
    }


def _of_their_acquisition(slices: list[DicomSlice], few: set[DicomSlice]) -> set[DicomSlice]:
    """Those of a few slices that name no acquisition but one of the others': another one is somebody's to choose."""
    known = {piece.acquisition for piece in slices if piece not in few} | {None}
    return {piece for piece in few if piece.acquisition in known}


def _between(slices: list[DicomSlice], few: set[DicomSlice]) -> set[DicomSlice]:
    """Those of a few slices that lie within the stretch of all others: a zone of its own lies beside it."""
    others = _places([piece for piece in slices if piece not in few])
    if others is None:
        return set()
    places = {piece: _places([piece]) for piece in few}
    return {piece for piece, place in places.items() if place is not None and others[0] <= place[0] <= others[-1]}


def _size(piece: DicomSlice) -> Hashable:
    return piece.file.rows, piece.file.columns


def _is_placed(piece: DicomSlice) -> Hashable:
    return piece.origin is not None and piece.orientation is not None


def _thickness(piece: DicomSlice) -> Hashable:
    return None if not piece.thickness else round(piece.thickness, 2)


def _places(slices: list[DicomSlice]) -> np.ndarray | None:
    """Where slices lie along the normal of the first, ascending, each place once; None where one does not say."""
    origins = [piece.origin for piece in slices if piece.origin is not None and piece.orientation is not None]
    if not slices or len(origins) < len(slices) or not np.isfinite(origins).all():
        return None
    assert slices[0].orientation is not None
    places = np.sort(np.array(origins) @ np.cross(*slices[0].orientation))
    return places[np.diff(places, prepend=-np.inf) > _SAME_PLACE_MM]
