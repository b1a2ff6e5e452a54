"""What a bag file says about itself, and how TRIDENT's and CLAM's files say the same."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil import __version__
from monai_mil.names import names_a_file
from monai_mil.scans import Depth, LungField, ScanFrame
from monai_mil.slides import Bounds

_PREFIX = "monai_mil."

_FROM_FOLDER = ("./", "../")
"""How a path begins that is relative to the bag's folder."""

BAG_FORMAT = 2
"""The format of bag files written here. Format 1 lacks every field of ``BagInfo`` from ``source`` on."""


@dataclass(frozen=True)
class BagInfo:
    """What a bag file records of its source, encoder and settings. ``None`` means that the file does not say.

    A bag of a scan has one instance a slice, or a layer of its ``depth``: its ``scan`` says where the slices lie, the
    fields of tiles are None.

    Attributes:
        slide_id: name of the slide or scan, unique in a cohort.
        slide_path: the slide the tiles were read from, or the scan's folder or file. In the file an absolute path
            stands relative to the bag's folder; it is absolute again when read.
        encoder: name of the encoder.
        encoder_digest: hash of the encoder's weights and preprocessing.
        tile_size: edge of a tile in pixels at ``target_mpp``.
        tile_size_level0: edge of a tile in level-0 pixels, exact.
        overlap: overlap of neighbouring tiles in pixels at ``target_mpp``.
        target_mpp: micrometres per pixel of the tiles.
        level0_size: width and height of the slide in level-0 pixels.
        mpp: micrometres per level-0 pixel.
        reader: library that decoded the slide.
        tissue: settings of the tissue segmentation and the grid's tissue threshold.
        level: which level of a quadtree (``slides.TileTree``) the bag is, 0 the finest; None if of none.
        levels: how many levels the quadtree has.
        scan: where the slices of a scan lie.
        preset: how Hounsfield units became the encoder's input, as ``SlicePreset.record`` gives it.
        depth: how the slices of the scan became the bag's instances; None where each slice is one.
        lungs: where the scan was not blanked; None if nowhere.
        version: version of monai-mil that wrote the file.
        format: the format of the file: ``BAG_FORMAT``, 1 of files from before there was one, None of other programs'.
        source: what the slide or scan is by its content, whatever it is called, as ``identity.content_identity`` gives
            it.
        source_stamp: a hash of inodes and times of the source's files: while it fits, ``source`` needs no reading.
        tissue_version: version of the algorithm that found the tissue; None where a mask of the user's was taken.
        decoder: library and version that decoded the slide's tiles.
        decoding: which ``slides.Decoder`` was chosen; None for ``"exact"``, and where ``decoder`` alone tells.
        encoder_dtype: number type in which the encoder ran, for example ``"float32"``.
        icc: what was done with the slide's colour profile: ``"none"``, or ``"apply"`` for pixels turned into sRGB.
        icc_profile: the slide's ICC profile, whatever was done with it.
        series: which series of a file with several was read; None where nobody chose.
        plane: which focal plane, likewise.
        given_mpp: ``mpp`` where the user gave it, whatever the slide's file said; None where the file's was taken.
        bounds: x, y, width and height of the scanned part of the slide, as ``slides.slide_bounds`` gives it.
        orientation: of a scan, where columns, rows and slices of what the encoder saw run in the patient, for example
            ``"LPS"``.
        remarks: what the reader assumed, repaired or left out, the gravest first.
        digests: SHA-256 of the datasets' bytes as stored, by name; features are told by their checksums, and by a
            digest of their own in bags of earlier versions. See ``BagFile.verify``.

    Examples:
        >>> from monai_mil.bags import BagInfo
        >>> info = BagInfo("S-1", encoder="mine", tile_size=256, target_mpp=0.5)
        >>> info.encoder, info.scan
        ('mine', None)
    """

    slide_id: str
    slide_path: str | None = None
    encoder: str | None = None
    encoder_digest: str | None = None
    tile_size: int | None = None
    tile_size_level0: float | None = None
    overlap: int | None = None
    target_mpp: float | None = None
    level0_size: tuple[int, int] | None = None
    mpp: float | None = None
    reader: str | None = None
    tissue: dict[str, Any] = field(default_factory=dict)
    level: int | None = None
    levels: int | None = None
    scan: ScanFrame | None = None
    preset: dict[str, Any] | None = None
    depth: Depth | None = None
    lungs: LungField | None = None
    version: str | None = __version__
    format: int | None = field(default=BAG_FORMAT, compare=False)
    source: str | None = None
    source_stamp: str | None = None
    tissue_version: int | None = None
    decoder: str | None = None
    decoding: str | None = None
    encoder_dtype: str | None = None
    icc: str | None = None
    icc_profile: bytes | None = field(default=None, repr=False)
    series: int | None = None
    plane: int | None = None
    given_mpp: float | None = None
    bounds: Bounds | None = None
    orientation: str | None = None
    remarks: tuple[str, ...] = ()
    digests: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def scan_instances(self) -> np.ndarray | None:
        """The first column of a scan's ``coords``, int64 ``[n]``; None for a slide."""
        if self.scan is None:
            return None
        return np.arange(len(self.scan)) if self.depth is None else self.depth.indices(len(self.scan))

    def positions_mm(self) -> np.ndarray | None:
        """Where a scan's instances lie along the normal, float64 ``[n]``; None for a slide."""
        if self.scan is None:
            return None
        positions = self.scan.positions_mm
        return positions if self.depth is None else self.depth.at_places(positions)


def placed_in(info: BagInfo, folder: Path) -> BagInfo:
    """The same with the source's path relative to ``folder``: cohorts are moved, and absolute paths name people."""
    return _with_paths(info, lambda path: _relative(Path(path), folder) if Path(path).is_absolute() else path)


def found_from(info: BagInfo, folder: Path) -> BagInfo:
    """The inverse: the source's path absolute, where ``placed_in`` made it relative."""
    return _with_paths(info, lambda path: _absolute(path, folder) if path.startswith(_FROM_FOLDER) else path)


def _with_paths(info: BagInfo, change: Callable[[str], str]) -> BagInfo:
    path = None if info.slide_path is None else change(info.slide_path)
    scan = info.scan
    if scan is not None and scan.path is not None:
        scan = replace(scan, path=change(scan.path))
    return replace(info, slide_path=path, scan=scan)


def _relative(path: Path, folder: Path) -> str:
    """The path as seen from the folder, links to folders resolved, for ``..`` leads out of what they point at."""
    seen = Path(os.path.relpath(path.parent.resolve() / path.name, folder.resolve())).as_posix()
    return seen if seen.startswith(_FROM_FOLDER) else f"./{seen}"


def _absolute(path: str, folder: Path) -> str:
    return os.path.normpath(folder.resolve() / path)


def info_attributes(info: BagInfo) -> dict[str, Any]:
    """HDF5 attributes of the file itself: every known field under ``monai_mil.<field>``."""
    values = {f.name: getattr(info, f.name) for f in fields(info)} | {
        "tissue": json.dumps(info.tissue),
        "remarks": json.dumps(info.remarks) if info.remarks else None,
        "digests": json.dumps(info.digests) if info.digests else None,
        "icc_profile": None if info.icc_profile is None else base64.b64encode(info.icc_profile).decode(),
        "scan": None if info.scan is None else info.scan.to_json(),
        "preset": None if info.preset is None else json.dumps(info.preset),
        "depth": None if info.depth is None else info.depth.to_json(),
        "lungs": None if info.lungs is None else info.lungs.to_json(),
    }
    return {_PREFIX + name: value for name, value in values.items() if value is not None}


def trident_attributes(info: BagInfo) -> dict[str, Any]:
    """TRIDENT's nine attributes of ``coords``; its magnification is ``10 / mpp``, rounded at level 0."""
    width, height = info.level0_size or (None, None)
    target = None if info.target_mpp is None else 10.0 / info.target_mpp
    values = {
        "patch_size": info.tile_size,
        "patch_size_level0": None if info.tile_size_level0 is None else round(info.tile_size_level0),
        "level0_magnification": None if info.mpp is None else round(10.0 / info.mpp),
        "target_magnification": int(target) if target is not None and target.is_integer() else target,
        "overlap": info.overlap,
        "name": info.slide_id,
        "savetodir": None,
        "level0_width": width,
        "level0_height": height,
    }
    return {name: "None" if value is None else value for name, value in values.items()}


def read_info(
    slide_id: str,
    file_attributes: Mapping[str, Any],
    encoder: str | None,
    coord_attributes: Mapping[str, Any],
    coords: np.ndarray,
    unit: float | None = None,
) -> BagInfo:
    """Read the frame of a bag from its attributes: our own, else TRIDENT's, CLAM's, STAMP's, or from the grid itself.

    Args:
        slide_id: the slide's name where the file does not say it.
        file_attributes: of the file.
        encoder: its name, where the file says it.
        coord_attributes: those that say what a tile is.
        coords: level-0 pixels, int64 ``[n, 2]``.
        unit: micrometres a level-0 pixel, given for a file that counts in micrometres; None where nobody knows.
    """
    attributes = _known(coord_attributes)
    encoder = None if encoder == "None" else encoder
    if is_own(file_attributes):
        info = _own_info(_known(file_attributes))
    elif {"patch_size", "level0_magnification", "target_magnification"} <= attributes.keys():
        info = _trident_info(str(attributes.get("name", slide_id)), encoder, attributes)
    elif {"patch_size", "patch_level"} <= attributes.keys():
        info = _clam_info(str(attributes.get("name", slide_id)), encoder, attributes, coords)
    elif "tile_size_um" in attributes:
        info = _stamp_info(slide_id, encoder, attributes, unit)
    else:
        info = BagInfo(
            slide_id=slide_id, encoder=encoder, tile_size_level0=_grid_step(coords), version=None, format=None
        )
    return info if names_a_file(info.slide_id) else replace(info, slide_id=slide_id)


def is_own(file_attributes: Mapping[str, Any]) -> bool:
    """Whether this package wrote a file with these attributes."""
    return _PREFIX + "slide_id" in file_attributes


def _known(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain Python values of the attributes that are not missing; TRIDENT writes a missing one as ``'None'``."""
    plain = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in attributes.items()}
    plain = {name: value.decode() if isinstance(value, bytes) else value for name, value in plain.items()}
    return {name: value for name, value in plain.items() if not (isinstance(value, str) and value == "None")}


def _own_info(attributes: dict[str, Any]) -> BagInfo:
    known: dict[str, Any] = {f.name: attributes.get(_PREFIX + f.name) for f in fields(BagInfo)}
    known["format"] = known["format"] or 1
    known["tissue"] = json.loads(known["tissue"] or "{}")
    known["remarks"] = tuple(json.loads(known["remarks"] or "[]"))
    known["digests"] = json.loads(known["digests"] or "{}")
    known["icc_profile"] = None if known["icc_profile"] is None else base64.b64decode(known["icc_profile"])
    known["scan"] = None if known["scan"] is None else ScanFrame.from_json(known["scan"])
    known["preset"] = None if known["preset"] is None else json.loads(known["preset"])
    known["depth"] = None if known["depth"] is None else Depth.from_json(known["depth"])
    known["lungs"] = None if known["lungs"] is None else LungField.from_json(known["lungs"])
    for name in ("level0_size", "bounds"):
        known[name] = None if known[name] is None else tuple(known[name])
    return BagInfo(**known)


def _trident_info(name: str, encoder: str | None, attributes: dict[str, Any]) -> BagInfo:
    level0, target = float(attributes["level0_magnification"]), float(attributes["target_magnification"])
    size = int(attributes["patch_size"])
    has_size = {"level0_width", "level0_height"} <= attributes.keys()
    mpp = attributes.get("mpp")
    return BagInfo(
        slide_id=name,
        slide_path=attributes.get("wsi_path"),
        encoder=encoder,
        tile_size=size,
        tile_size_level0=float(attributes.get("patch_size_level0", size * level0 / target)),
        overlap=int(attributes["overlap"]) if "overlap" in attributes else None,
        target_mpp=10.0 / target,
        level0_size=(int(attributes["level0_width"]), int(attributes["level0_height"])) if has_size else None,
        mpp=float(mpp) if isinstance(mpp, (int, float)) and mpp > 0 else 10.0 / level0,
        version=None,
        format=None,
    )


def _stamp_info(slide_id: str, encoder: str | None, attributes: dict[str, Any], mpp: float | None) -> BagInfo:
    """STAMP says how large a tile is in micrometres and in the pixels the encoder saw, not how large a pixel is."""
    micrometres, pixels = float(attributes["tile_size_um"]), attributes.get("tile_size_px")
    return BagInfo(
        slide_id=slide_id,
        encoder=encoder,
        tile_size=None if pixels is None else int(pixels),
        tile_size_level0=None if mpp is None else micrometres / mpp,
        target_mpp=None if pixels is None else micrometres / int(pixels),
        mpp=mpp,
        version=None,
        format=None,
    )


def _clam_info(name: str, encoder: str | None, attributes: dict[str, Any], coords: np.ndarray) -> BagInfo:
    """CLAM's ``patch_size`` counts pixels of ``patch_level``, which is ``downsample`` times coarser than level 0.

    Tiles that were reduced further, by ``custom_downsample``, show as much more of the slide. A file that names a
    level but not how coarse it is leaves the tiles' size to their distance.
    """
    size = int(attributes["patch_size"])
    downsample = attributes.get("downsample", None if attributes["patch_level"] else 1.0)
    if downsample is None:
        return BagInfo(
            name, encoder=encoder, tile_size=size, tile_size_level0=_grid_step(coords), version=None, format=None
        )
    scale_x, scale_y = np.broadcast_to(np.ravel(downsample), 2).tolist()
    width, height = attributes.get("level_dim", (None, None))
    return BagInfo(
        slide_id=name,
        encoder=encoder,
        tile_size=size,
        tile_size_level0=size * scale_x * float(attributes.get("custom_downsample", 1)),
        level0_size=None if width is None else (round(width * scale_x), round(height * scale_y)),
        version=None,
        format=None,
    )


def _grid_step(coords: np.ndarray) -> float | None:
    """Most frequent distance of neighbours within a column: the tile's edge in a file that does not name it."""
    if len(coords) < 2:
        return None
    ordered = coords[np.lexsort((coords[:, 1], coords[:, 0]))]
    step = np.diff(ordered, axis=0)
    down = step[(step[:, 0] == 0) & (step[:, 1] > 0), 1]
    if down.size == 0:
        return None
    values, counts = np.unique(down, return_counts=True)
    return float(values[np.argmax(counts)])
