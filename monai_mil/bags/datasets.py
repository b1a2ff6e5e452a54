"""Datasets of HDF5 files from anywhere: what they hold is in the file, and no more than the file can hold."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from monai_mil.errors import BagError, DamagedBagError

CHECKSUMS = "feature_checksums"
_MOST_COMPRESSED = 2000
"""Deflate makes no more than 1,032 bytes of one; the filters of other programs stay below this on numbers, too."""


def find_dataset(path: Path, file: h5py.File, name: str, kind: str = "bag") -> h5py.Dataset:
    """The dataset ``name`` of an open file.

    Args:
        path: the file, for messages.
        file: the same, open.
        name: of the dataset, with the names of the groups before it, parted by ``/``.
        kind: what the file is, for messages.

    Raises:
        BagError: there is none, or its data are another file's.
        DamagedBagError: its shape is more than the file can hold.
    """
    refuse_links(path, file, name, kind)
    found = file.get(name)
    if isinstance(found, h5py.Group):
        raise BagError(f"{kind} '{path}': '{name}' is no dataset; not a feature file")
    if found is None:
        raise BagError(
            f"{kind} '{path}': no dataset '{name}' (it has {sorted({*file} - {CHECKSUMS})}); not a feature file"
        )
    _check_size(path, found, name, kind)
    return found


def refuse_links(path: Path, file: h5py.File, name: str, kind: str = "bag") -> None:
    """Raise a BagError if a name, or a part of it, is that of something elsewhere; nothing is opened there."""
    place = file
    parts = name.split("/")
    for depth, part in enumerate(parts, start=1):
        link = place.get(part, getlink=True)
        if isinstance(link, h5py.ExternalLink | h5py.SoftLink):
            raise _elsewhere(path, name, kind)
        inner = place[part] if link is not None and depth < len(parts) else None
        if not isinstance(inner, h5py.Group):
            return
        place = inner


def _check_size(path: Path, dataset: h5py.Dataset, name: str, kind: str) -> None:
    if dataset.is_virtual or dataset.external:
        raise _elsewhere(path, name, kind)
    if dataset.file.driver == "core":
        return
    stored, size = dataset.id.get_storage_size(), path.stat().st_size
    shapes = [dataset.shape or ()] + ([dataset.chunks] if dataset.chunks else [])
    needed = max(dataset.dtype.itemsize * int(np.prod(shape, dtype=object)) for shape in shapes)
    most = stored if dataset.chunks is None or not _is_filtered(dataset) else _MOST_COMPRESSED * stored
    if dataset.size and (needed > most or stored > size):
        raise DamagedBagError(
            f"{kind} '{path}': '{name}' of shape {list(dataset.shape)} takes {needed} bytes, and the file holds "
            f"{stored} of them; make it again"
        )


def _elsewhere(path: Path, name: str, kind: str) -> BagError:
    return BagError(
        f"{kind} '{path}': '{name}' only points at data elsewhere, which is never followed; copy the data into the file"
    )


def _is_filtered(dataset: h5py.Dataset) -> bool:
    return dataset.id.get_create_plist().get_nfilters() > 0
