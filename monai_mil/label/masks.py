"""Masks that annotators of scans send."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from monai_mil.errors import AnnotationError


def has_finding(mask: Path) -> bool:
    """Whether any voxel of a mask is above 0.

    Args:
        mask: NIfTI, NRRD, or the bare voxels (``.bin``) that OHIF sends.

    Raises:
        AnnotationError: it cannot be read.
    """
    name = mask.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            import nibabel

            return bool((np.asanyarray(nibabel.load(mask).dataobj) > 0).any())  # type: ignore[attr-defined]
        if name.endswith(".bin"):
            voxels = np.frombuffer(mask.read_bytes(), np.uint8)
            if not voxels.size:
                raise ValueError("it holds no voxel")
            return bool(voxels.any())
        import SimpleITK as sitk  # noqa: N813

        return bool((sitk.GetArrayFromImage(sitk.ReadImage(str(mask))) > 0).any())
    except Exception as error:  # each reader raises its own
        reason = str(error).strip().split("\n")[-1]
        raise AnnotationError(f"mask '{mask.name}': cannot be read ({reason}); send .nii.gz or .nrrd") from error


def check_size(mask: Path, scan: Path) -> None:
    """Refuse a mask that has another number of voxels than its scan.

    Args:
        mask: as for :func:`has_finding`.
        scan: a volume; of a folder of slices nothing is checked.

    Raises:
        AnnotationError: it has.
    """
    import SimpleITK as sitk  # noqa: N813

    def voxels(path: Path) -> int:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        return math.prod(reader.GetSize())

    if not scan.is_file():
        return
    try:
        expected = voxels(scan)
        found = mask.stat().st_size if mask.suffix == ".bin" else voxels(mask)
    except RuntimeError as error:
        raise AnnotationError(f"mask '{mask.name}': cannot be compared with its scan; send .nii.gz or .nrrd") from error
    if found != expected and not (mask.suffix == ".bin" and found == 2 * expected):
        raise AnnotationError(
            f"mask '{mask.name}' has {found} voxels, its scan {expected}; was it drawn on another scan?"
        )
