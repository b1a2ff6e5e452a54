"""Export of bags to the files that CLAM reads."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from monai_mil.bags.file import BagFile
from monai_mil.errors import BagError
from monai_mil.files import replacing, replacing_hdf5
from monai_mil.names import file_stem


def export_clam(bag: str | os.PathLike[str], folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write a bag as CLAM does: ``h5_files/<slide>.h5`` and ``pt_files/<slide>.pt``, float32.

    Args:
        bag: a pooled bag; CLAM knows no spatial ones.
        folder: CLAM's feature folder.

    Returns:
        The two files.

    Raises:
        BagError: the bag is spatial or cannot be read.
        OutputError: a file cannot be written, because the disk is full for example.
    """
    import torch

    with BagFile(bag) as source:
        if source.grid is not None:
            raise BagError(f"bag '{bag}': CLAM reads vectors, this bag has a {source.grid} grid; embed without spatial")
        features, coords, slide_id = source.features().astype(np.float32), source.coords, source.info.slide_id
    h5_path = Path(folder, "h5_files", f"{file_stem(slide_id)}.h5")
    pt_path = Path(folder, "pt_files", f"{file_stem(slide_id)}.pt")
    with replacing_hdf5(h5_path) as file:
        rows = (32, features.shape[1])
        file.create_dataset("features", data=features, chunks=rows, maxshape=(None, features.shape[1]))
        file.create_dataset("coords", data=coords.astype(np.int32), chunks=(32, 2), maxshape=(None, 2))
    with replacing(pt_path) as partial:
        torch.save(torch.from_numpy(features), partial)
    return h5_path, pt_path
