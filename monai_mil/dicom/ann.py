"""Annotations of slides: every tile with its score, and the regions above the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.dicom.algorithm import MANUFACTURER, RESEARCH, Algorithm
from monai_mil.dicom.instance import constructor_arguments, derived_uid, referenced_key, write_instance
from monai_mil.dicom.source import DicomSource, lenient
from monai_mil.dicom.terms import Terms, coded, private
from monai_mil.heatmaps import Heatmap, Region, find_regions


def write_annotations(
    path: str | Path, source: DicomSource, heatmap: Heatmap, algorithm: Algorithm, *, terms: Terms | None = None
) -> Path:
    """Write Microscopy Bulk Simple Annotations in pixels of the slide's finest level.

    The first group has a polygon for every tile and its score (of a block of scores the highest). The second, where the
    heatmap has a foreground, has the regions of ``export_geojson`` with mean score, highest score and area; a region
    with holes comes in pieces without, for these objects know none.

    Args:
        path: the file.
        source: the slide the heatmap is of.
        heatmap: the scores.
        algorithm: what made them.
        terms: the codes.

    Raises:
        OutputError: the file cannot be written.
    """
    from highdicom.ann import MicroscopyBulkSimpleAnnotations

    finding = str(heatmap.attributes.get("finding", heatmap.name))
    with lenient():
        groups = _groups(source, heatmap, algorithm, terms or Terms(), finding)
        made = MicroscopyBulkSimpleAnnotations(
            [source.first],
            "2D",
            groups,
            content_label="AI_ANNOTATIONS",
            content_description=f"{heatmap.name}, {RESEARCH}"[:64],
            content_creator_name=f"{MANUFACTURER}^",
            **constructor_arguments(source, algorithm, "ANN", f"annotations {finding}"),
        )
    return write_instance(Path(path), made, source, algorithm, "ANN")


def _groups(source: DicomSource, heatmap: Heatmap, algorithm: Algorithm, terms: Terms, finding: str) -> list[Any]:
    key = [*referenced_key(source, algorithm), finding, heatmap.name]
    scores = {heatmap.name: heatmap.tile_scores}
    groups = [_group(1, f"{heatmap.name} of tiles", _tiles(heatmap), scores, algorithm, terms, key)]
    regions = _regions(heatmap)
    if regions:
        figures = {
            f"{heatmap.name} mean": np.array([region.mean for region in regions]),
            f"{heatmap.name} max": np.array([region.maximum for region in regions]),
            "area mm2": np.array([region.area * heatmap.frame.mpp**2 * 1e-6 for region in regions]),
        }
        shapes = [region.rings[0][:-1].astype(np.float32) for region in regions]
        groups.append(_group(2, f"{finding} regions", shapes, figures, algorithm, terms, key))
    return groups


def _tiles(heatmap: Heatmap) -> list[np.ndarray]:
    """The corners of every tile, clockwise, up to the slide's border: float32 ``[4, 2]`` each."""
    near = np.maximum(heatmap.coords, 0)
    far = np.minimum(heatmap.coords + heatmap.frame.tile_size_level0, heatmap.frame.level0_size)
    x0, y0, x1, y1 = near[:, 0], near[:, 1], far[:, 0], far[:, 1]
    corners = np.stack([x0, y0, x1, y0, x1, y1, x0, y1], axis=1).astype(np.float32)
    return list(corners.reshape(-1, 4, 2))


def _regions(heatmap: Heatmap) -> list[Region]:
    if heatmap.threshold is None or heatmap.threshold == np.inf:
        return []
    lowest = float(np.nextafter(np.float32(heatmap.threshold), np.float32(np.inf)))
    return find_regions(heatmap, lowest, holes=False)


def _group(
    number: int,
    label: str,
    shapes: Sequence[np.ndarray],
    figures: dict[str, np.ndarray],
    algorithm: Algorithm,
    terms: Terms,
    key: list[Any],
) -> Any:
    from highdicom.ann import AnnotationGroup, Measurements
    from pydicom.sr.codedict import codes

    units = {name: codes.UCUM.SquareMillimeter if name == "area mm2" else codes.UCUM.NoUnits for name in figures}
    return AnnotationGroup(
        number,
        derived_uid("annotations", *key, number),
        label[:64],
        coded(terms.category),
        coded(terms.kind),
        "POLYGON",
        shapes,
        "AUTOMATIC",
        algorithm.identification(),
        [Measurements(coded(private(name)), values, units[name]) for name, values in figures.items()],
    )
