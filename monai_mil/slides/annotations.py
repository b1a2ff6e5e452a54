"""Ground truth as annotators' programs write it: masks, ASAP's XML, GeoJSON, NCRF's JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from monai_mil.errors import AnnotationError
from monai_mil.names import is_there
from monai_mil.slides.bounds import AnnotationFrame, Bounds, frame_origin
from monai_mil.slides.mask_pyramid import MaskPyramid
from monai_mil.slides.polygons import Polygon
from monai_mil.slides.truth import ArrayTruth, PolygonTruth, Truth

SUFFIXES = (".tif", ".tiff", ".xml", ".geojson", ".json", ".npz")
_MOST_PIXELS = 1 << 24
_FINDING = {"_0", "_1", "tumor", "tumour", "metastases"}
_NO_FINDING = {"_2", "exclusion", "normal"}
_NO_TISSUE = {"exclusion", "ignore", "ignore*", "background", "glass"}

Named = tuple[str | None, list[np.ndarray]]  # group or class, and the rings of a polygon


def open_truth(
    path: str | Path,
    *,
    value: int | str | None = None,
    level0_size: tuple[int, int] | None = None,
    bounds: Bounds | None = None,
    frame: AnnotationFrame = "qupath",
) -> Truth:
    """Open a slide's ground truth.

    Known are masks (TIFF, pyramidal or not; ``.npz`` of ``make_slide_cohort``), the XML of ASAP as CAMELYON16 and 17
    use it, GeoJSON as QuPath writes it, and the JSON of NCRF. Polygons are in level-0 pixels; in GeoJSON they count
    from the corner of the scanned part of slides that name one, as QuPath does, unless the file (``frame``, as
    ``heatmaps.export_geojson`` writes it) or the caller says otherwise. Those of the groups or
    classes ``_0``, ``_1``, ``Tumor`` and ``metastases``, and in GeoJSON those of none, are the finding; ``_2``,
    ``Exclusion`` and ``normal`` are taken out of it.

    Args:
        path: the file.
        value: what is the finding, where that is something else: the number of its pixels in a mask (default any but
            0), the name of its group or class in polygons (then all others but the exclusions are left out).
        level0_size: width and height of the slide, for masks of another resolution.
        bounds: the slide's, as :func:`monai_mil.slides.slide_bounds` gives them; None where they are unknown.
        frame: what the coordinates of a GeoJSON count from that does not say it: ``qupath`` or ``level0``.

    Raises:
        AnnotationError: the file is missing, damaged or of an unknown kind, has groups of unknown meaning, or is a
            mask and ``value`` no number.
    """
    path = Path(path)
    if not (is_there(path) and path.is_file()):
        raise AnnotationError(f"ground truth '{path}': no such file; check the path")
    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        return MaskPyramid(path, _pixel_value(path, value), level0_size)
    if suffix == ".npz":
        return _stored_array(path)
    if suffix not in SUFFIXES:
        raise AnnotationError(f"ground truth '{path}': unknown kind; convert it to one of {', '.join(SUFFIXES)}")
    return _sorted_out(path, _asap(path) if suffix == ".xml" else _json(path, bounds, frame), value)


def read_shapes(path: str | Path, *, bounds: Bounds | None = None, frame: AnnotationFrame = "qupath") -> list[Named]:
    """What annotators drew, whatever its class: of every shape its group or class, None where it has none, and rings.

    Read are the XML of ASAP, whose coordinates are taken as they stand, and GeoJSON. Points are rings of one corner.

    Args:
        path: the file, ``.xml``, ``.geojson`` or ``.json``.
        bounds: the slide's; what a GeoJSON counts from that does not say it, see :func:`open_truth`.
        frame: likewise.

    Returns:
        Names and rings, float64 ``[k, 2]`` each, the first of a shape its outline and the others its holes.

    Raises:
        AnnotationError: the file is damaged, of an unknown kind, or declares a document type.
    """
    path = Path(path)
    if path.suffix.lower() == ".xml":
        return list(_asap(path))
    if path.suffix.lower() not in (".json", ".geojson"):
        raise AnnotationError(f"annotations '{path}': unknown kind; send .xml of ASAP or .geojson")
    return list(_json(path, bounds, frame))


def open_outlines(path: Path, bounds: Bounds) -> PolygonTruth:
    """The polygons of a GeoJSON whatever their class, but ``exclusion``, ``ignore``, ``background`` and ``glass``.

    Those are taken out of the others. Files of TRIDENT, which number every piece of tissue, are in level-0 pixels.

    Raises:
        AnnotationError: the file is damaged or no GeoJSON.
    """
    included: list[Polygon] = []
    excluded: list[Polygon] = []
    for name, rings in _json(path, bounds, "level0" if _is_trident(path) else "qupath"):
        rings = [ring for ring in rings if len(ring) > 2]
        if rings:
            (excluded if (name or "").lower() in _NO_TISSUE else included).append(Polygon(tuple(rings)))
    return PolygonTruth(path, included, excluded)


def _is_trident(path: Path) -> bool:
    return '"tissue_id"' in path.read_text(encoding="utf-8-sig", errors="replace")


def _pixel_value(path: Path, value: int | str | None) -> int | None:
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise AnnotationError(
            f"mask '{path}': its pixels are numbers, '{value}' is none; give the number of the finding, or None for "
            "all but 0"
        ) from None


def find_truth(folder: str | Path, slide_id: str) -> Path:
    """The file ``<slide_id>`` or ``<slide_id>_mask`` of a known kind in a folder, masks before polygons.

    Raises:
        AnnotationError: there is none.
    """
    stems = (slide_id, f"{slide_id}_mask", f"{slide_id}_Mask")
    for suffix in SUFFIXES:
        for stem in stems:
            path = Path(folder, f"{stem}{suffix}")
            if path.is_file():
                return path
    raise AnnotationError(
        f"slide '{slide_id}': no ground truth in '{folder}'; name it '{slide_id}' or '{slide_id}_mask' and one of "
        f"{', '.join(SUFFIXES)}"
    )


def _sorted_out(path: Path, named: Iterable[Named], value: int | str | None) -> PolygonTruth:
    included: list[Polygon] = []
    excluded: list[Polygon] = []
    for name, rings in named:
        rings = [ring for ring in rings if len(ring) > 2]  # dots, rulers and slips of the hand have no area
        if not rings:
            continue
        polygon, known = Polygon(tuple(rings)), (name or "").lower()
        if name is not None and value is not None and known == str(value).lower():
            included.append(polygon)
        elif known in _NO_FINDING:
            excluded.append(polygon)
        elif value is None and (name is None or known in _FINDING):
            included.append(polygon)
        elif value is None:
            raise AnnotationError(
                f"annotations '{path}': is '{name}' the finding? Known are {', '.join(sorted(_FINDING))} and, as none, "
                f"{', '.join(sorted(_NO_FINDING))}; name the finding with 'value'"
            )
    return PolygonTruth(path, included, excluded)


def _asap(path: Path) -> Iterator[Named]:
    """Group and outline of every annotation in an ASAP file."""
    annotations: list[tuple[str, list[tuple[float, float]]]] = []
    names: list[str] = []

    def start(name: str, attributes: dict[str, str]) -> None:
        names.append(name)
        if name == "Annotation":
            group = attributes.get("PartOfGroup", "")
            annotations.append((attributes.get("Name", "") if group in ("", "None") else group, []))
        elif name == "Coordinate":
            annotations[-1][1].append((float(attributes["X"]), float(attributes["Y"])))

    def refuse(*_: Any) -> None:
        raise ValueError("it declares a document type, which annotations never need and attacks do")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
        if names[0] != "ASAP_Annotations":
            raise ValueError(f"its root is '{names[0]}', not 'ASAP_Annotations'")
        for group, points in annotations:
            yield group, [_ring(points)]
    except (OSError, ValueError, KeyError, IndexError, expat.ExpatError) as error:
        raise AnnotationError(f"annotations '{path}': no XML of ASAP ({error}); export it again") from error


def _json(path: Path, bounds: Bounds | None, frame: AnnotationFrame) -> Iterator[Named]:
    """Name and rings of every polygon in GeoJSON or in NCRF's JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(content, dict) and {"positive", "negative"} & content.keys():
            for key, name in (("positive", "tumor"), ("negative", "normal")):
                for outline in content.get(key, []):
                    points = outline["vertices"] if isinstance(outline, dict) else outline
                    yield name, [_ring(points)]
        else:
            origin = _origin(content, bounds, frame)
            for feature in content if isinstance(content, list) else _features(content):
                for group, rings in _feature(feature):
                    yield group, [ring + origin for ring in rings]
    except RecursionError as error:
        raise AnnotationError(f"annotations '{path}': nested deeper than any GeoJSON is; export it again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise AnnotationError(f"annotations '{path}': no GeoJSON ({error!r}); export it again") from error


def _origin(content: Any, bounds: Bounds | None, frame: AnnotationFrame) -> np.ndarray:
    """The level-0 pixel from which a GeoJSON counts, by what it says itself or else by the frame."""
    stated = content if isinstance(content, dict) else {}
    if "frame_origin" in stated:
        return _ring([stated["frame_origin"]])[0]
    return np.array(frame_origin(stated.get("frame", frame), bounds), float)


def _features(content: dict[str, Any]) -> list[dict[str, Any]]:
    return content["features"] if content["type"] == "FeatureCollection" else [content]


def _feature(feature: dict[str, Any]) -> Iterator[Named]:
    properties = feature.get("properties") or {}
    classification = properties.get("classification") or {}
    name = classification if isinstance(classification, str) else classification.get("name")
    for rings in _outlines(feature["geometry"] if feature["type"] == "Feature" else feature):
        yield name, [_ring(ring) for ring in rings]


def _outlines(geometry: dict[str, Any]) -> Iterator[list[Any]]:
    """Rings of every polygon of a geometry; points and lines have no area."""
    kind = geometry["type"]
    if kind == "Polygon":
        yield geometry["coordinates"]
    elif kind == "MultiPolygon":
        yield from geometry["coordinates"]
    elif kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _outlines(part)


def _ring(points: Any) -> np.ndarray:
    """Corners ``[k, 2]`` of pairs, or of x and y in turn."""
    ring = np.asarray(points, float)
    ring = ring.reshape(-1, 2) if ring.ndim == 1 else ring[:, :2]
    if ring.ndim != 2 or ring.shape[1] != 2:
        raise ValueError("a corner has not an x and a y")
    if not np.isfinite(ring).all():
        raise ValueError("a corner is no number")
    if (np.abs(ring) > _MOST_PIXELS).any():
        raise ValueError("a corner lies beyond any slide")
    return ring


def _stored_array(path: Path) -> ArrayTruth:
    try:
        with np.load(path) as stored:
            mask, downsample = stored["tumour"], float(stored["downsample"])
            if mask.ndim != 2 or mask.dtype.kind not in "bui" or not 0 < downsample < np.inf:
                raise ValueError(f"'tumour' is {mask.dtype} {list(mask.shape)}, 'downsample' {downsample}")
            return ArrayTruth(path, mask, downsample)
    except Exception as error:  # a damaged archive makes numpy and zipfile raise many kinds of errors
        raise AnnotationError(
            f"mask '{path}': cannot be read ({error}); it needs the arrays 'tumour' and 'downsample'"
        ) from error
