"""A scan's label out of a mask: what an annotator has drawn says whether there is anything."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import LoadImage, MapTransform

from monai_mil.errors import CohortError


class MaskLabeld(MapTransform):
    """Replace the path of a mask by 1 where any voxel of it is above 0, else by 0; a number stays as it is.

    MONAI Label hands out every label as a file, an empty mask for a negative scan.

    Args:
        keys: keys of the labels: a path of what :class:`monai.transforms.LoadImage` reads, or a number.
        allow_missing_keys: skip absent keys.

    Raises:
        CohortError: the mask cannot be read; names it.

    Examples:
        >>> import nibabel, numpy
        >>> from monai_mil.embedding import MaskLabeld
        >>> mask = numpy.zeros((4, 4, 2), numpy.uint8)
        >>> mask[1, 1, 1] = 2
        >>> nibabel.save(nibabel.Nifti1Image(mask, numpy.eye(4)), folder / "drawn.nii.gz")
        >>> MaskLabeld("label")({"label": folder / "drawn.nii.gz"}), MaskLabeld("label")({"label": 0})
        ({'label': 1}, {'label': 0})
    """

    def __init__(self, keys: KeysCollection = "label", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self._load = LoadImage(image_only=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace ``data[key]``; the input dictionary is left as it is."""
        labelled = dict(data)
        for key in self.key_iterator(labelled):
            if isinstance(labelled[key], str | Path):
                labelled[key] = int((self._read(labelled[key]) > 0).any())
        return labelled

    def _read(self, path: str | Path) -> Any:
        try:
            return self._load(path)
        except Exception as error:  # every reader has its own
            why = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise CohortError(f"mask '{path}' cannot be read: {why}") from error
