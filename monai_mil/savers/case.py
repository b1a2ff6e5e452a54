"""What an engine knows of one case, read from its decollated batch and output: its name, its frame, its slices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.errors import CohortError
from monai_mil.heatmaps import SlideFrame, as_array
from monai_mil.scans import Depth, LungField, ScanFrame

_FRAME = ("level0_size", "mpp", "tile_size_level0")


def cases(engine: Any) -> Iterator[dict[str, Any]]:
    """The items of an engine's iteration; what is in the output stands before what is in the batch.

    Raises:
        ValueError: the engine does not decollate.
    """
    batch, output = engine.state.batch, engine.state.output
    if not isinstance(output, Sequence):
        raise ValueError("savers need decollated items: keep decollate=True of the evaluator")
    for given, made in zip(batch if isinstance(batch, Sequence) else [{}] * len(output), output, strict=True):
        item = {**given, **made}
        if isinstance(item.get("pred"), Mapping):
            item = {**item, **item["pred"]}
        yield item


def case_id(item: Mapping[str, Any]) -> str:
    """The slide's or scan's name, fit to be a file's name.

    Raises:
        CohortError: there is none, or it is no plain file name.
    """
    column, meta = id_column(item), _meta(item)
    name = item.get(column, meta.get(column, meta.get("slide_id")))
    if name is None:
        raise CohortError(
            "a case of the engine has no 'slide_id' or 'scan_id', neither as a key nor in its image's meta data"
        )
    if Path(str(name)).name != str(name):
        raise CohortError(f"{column} '{name}' cannot name a file; use a name without '/'")
    return str(name)


def id_column(item: Mapping[str, Any]) -> str:
    """The column of tables that names the case: ``scan_id`` of a scan, else ``slide_id``."""
    given = next((column for column in ("scan_id", "slide_id") if column in item), None)
    return given or ("scan_id" if _meta(item).get("scan_id") or _meta(item).get("scan_frame") else "slide_id")


def case_text(item: Mapping[str, Any]) -> str:
    """The case as an error names it."""
    return f"{id_column(item).removesuffix('_id')} '{case_id(item)}'"


def read_frame(item: Mapping[str, Any]) -> SlideFrame:
    """The slide's frame from the image's meta data; what a foreign bag leaves out is read from the slide.

    Raises:
        CohortError: a fact is missing and there is no slide to read it from.
    """
    meta = _meta(item)
    if meta.get("scan_frame"):
        raise CohortError(f"{case_text(item)}: a scan has slices, no tiles; write its results with SliceSaver")
    path = str(meta.get("slide_path") or "") or None
    mpp, tile_size = _known(meta.get("mpp")), _known(meta.get("tile_size_level0"))
    size = _known(meta.get("level0_size"))
    if path is not None and (mpp is None or size is None) and Path(path).exists():
        from monai_mil.slides import open_slide

        with open_slide(path, mpp=None if mpp is None else float(mpp[0])) as slide:
            mpp, size = np.array([slide.mpp]), np.array(slide.size)
    if mpp is None or size is None or tile_size is None:
        facts = {"mpp": mpp, "level0_size": size, "tile_size_level0": tile_size}
        missing = ", ".join(name for name, value in facts.items() if value is None)
        raise CohortError(
            f"{case_text(item)}: its bag does not say {missing}; embed it with 'monai-mil embed', "
            "or name the slide's file in the cohort"
        )
    return SlideFrame(case_id(item), path, (int(size[0]), int(size[1])), float(mpp[0]), float(tile_size[0]))


def read_scan_frame(item: Mapping[str, Any]) -> ScanFrame:
    """The scan's frame from the image's meta data.

    Raises:
        CohortError: it is not there.
    """
    text = _meta(item).get("scan_frame")
    if not text:
        raise CohortError(
            f"{case_text(item)}: its bag does not say where its slices lie; embed it with 'monai-mil embed-scans'"
        )
    return ScanFrame.from_json(str(text))


def read_depth(item: Mapping[str, Any]) -> Depth | None:
    """How the slices of the scan became the case's instances; None where each is one."""
    text = _meta(item).get("scan_depth")
    return Depth.from_json(str(text)) if text else None


def read_lungs(item: Mapping[str, Any]) -> LungField | None:
    """The lungs outside of which the network saw nothing; None where it saw all."""
    text = _meta(item).get("scan_lungs")
    return LungField.from_json(str(text)) if text else None


def read_slices(item: Mapping[str, Any], name: str) -> np.ndarray | None:
    """One value a slice ``[..., n]``, padding removed, or None where the case has no such key."""
    given = item.get(name)
    return None if given is None else without_padding(item, as_numbers(given), axis=-1)


def slice_order(item: Mapping[str, Any], expected: np.ndarray) -> np.ndarray:
    """Which instance of the case is each of the ``expected`` slices of its scan, int ``[m]``, from its ``coords``.

    Raises:
        CohortError: the instances are not the slices of the scan, each once.
    """
    slices = without_padding(item, as_numbers(item["coords"]))[:, 0]
    order = np.argsort(slices, kind="stable")
    if not np.array_equal(slices[order], expected):
        raise CohortError(
            f"{case_text(item)}: its {len(slices)} instances are not the {len(expected)} slices of its scan; give the "
            "network the whole bag"
        )
    return order


def without_padding(item: Mapping[str, Any], values: np.ndarray, axis: int = 0) -> np.ndarray:
    """``values`` without padding; what has no padding any more stays."""
    mask = item.get("mask")
    if mask is None:
        return values
    tokens = as_numbers(mask)
    real = np.count_nonzero(tokens.reshape(len(tokens), -1), axis=1) > 0
    if values.shape[axis] != len(real):
        return values
    return np.compress(real, values, axis=axis)


def as_numbers(values: Any) -> np.ndarray:
    """A value, a list or a tensor as an array of at least one dimension."""
    return np.atleast_1d(as_array(values))


def _known(fact: Any) -> np.ndarray | None:
    """A number or a pair of the meta data; None for what ``LoadBagd`` writes where a bag does not say: NaN or 0."""
    values = None if fact is None else as_numbers(fact)
    return values if values is not None and (values > 0).all() else None


def _meta(item: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**getattr(item.get("image"), "meta", {}), **{name: item[name] for name in _FRAME if name in item}}
