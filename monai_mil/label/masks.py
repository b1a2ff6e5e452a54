"""Masks that annotators of scans send."""

from __future__ import annotations

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

        return bool((sitk.GetArrayViewFromImage(sitk.ReadImage(str(mask))) > 0).any())
    except Exception as error:  # each reader raises its own
        reason = str(error).strip().split("\n")[-1]
        raise AnnotationError(f"mask '{mask.name}': cannot be read ({reason}); send .nii.gz or .nrrd") from error
