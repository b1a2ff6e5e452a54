"""Volumes that are masks or segmentations, not CT."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from monai_mil.scans.volume import NIFTI, NIFTI_2, is_gzip, read_itk, volume_suffix

_WORDS = {"mask", "masks", "seg", "segs", "segmentation", "segmentations", "label", "labels", "labelmap", "labelmaps"}
_FOLDERS = {*_WORDS, "labelstr", "labelsts", "labelsval", "annotations", "groundtruth", "ground_truth", "gt"}
_MOST_LABELS = 128
"""A picture of 8 bits has more grey values, and no atlas of organs has so many labels."""
_CHUNK = 1 << 18


def is_mask(path: Path, below: Path) -> bool:
    """Whether a volume file is a mask: whole numbers from 0 upwards, and few of them.

    Where its name or that of a folder between it and ``below`` says so, the first slices (262,144 voxels) decide that
    it is no CT; else all of them, and a volume of one single value is none. What cannot be read is no mask, so that it
    is told.
    """
    named = _is_named_so(path, below)
    suffix = volume_suffix(path)
    if suffix is None or not (suffix in NIFTI or named):
        return False
    if path.name.lower().endswith(".seg.nrrd"):
        return True
    found: set[int] = set()
    try:
        for values in _nifti_values(path) if suffix in NIFTI else _first_itk_values(path):
            if values.size and values.min() < 0:
                return False
            if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
                return False
            found.update(np.unique(values).astype(int).tolist())
            if len(found) > _MOST_LABELS:
                return False
            if named:
                return True
    except Exception:  # nibabel and gzip raise whatever they meet; the file is told where it is read as a scan
        return False
    return len(found) > 1


def _is_named_so(path: Path, below: Path) -> bool:
    suffix = volume_suffix(path) or ""
    words = re.split(r"[^a-z]+", path.name[: len(path.name) - len(suffix)].lower())
    folders = path.parent.relative_to(below).parts if path.is_relative_to(below) else ()
    return bool(_WORDS & set(words)) or any(folder.lower() in _FOLDERS for folder in folders)


def _nifti_values(path: Path) -> Iterator[np.ndarray]:
    """The numbers of a NIfTI file as they mean, a few slices at a time; nothing where they are no plain numbers."""
    import nibabel

    with gzip.open(path) if is_gzip(path) else path.open("rb") as stream:
        header: Any = nibabel.Nifti2Header if stream.read(4) in NIFTI_2 else nibabel.Nifti1Header
        stream.seek(0)
        header = header.from_fileobj(stream, check=False)
        kind = header.get_data_dtype()
        if kind.kind not in "iuf":
            return
        slope, intercept = header.get_slope_inter()
        stream.seek(header.get_data_offset())
        left = int(np.prod(header.get_data_shape())) * kind.itemsize
        while left > 0 and (chunk := stream.read(min(left, _CHUNK * kind.itemsize))):
            left -= len(chunk)
            values = np.frombuffer(chunk[: len(chunk) // kind.itemsize * kind.itemsize], kind)
            yield values if slope in (None, 1.0) and not intercept else values * (slope or 1.0) + (intercept or 0.0)


def _first_itk_values(path: Path) -> Iterator[np.ndarray]:
    array = read_itk(path)[0]
    yield array.T.reshape(-1)[:_CHUNK]
