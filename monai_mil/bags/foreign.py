"""Feature files of other programs: where their features and coordinates stand, and in which unit.

TRIDENT, CLAM and INSIGHT write ``features`` and ``coords`` as this package does. Read as they are too: STAMP (``feats``
or ``patch_embeddings``, coordinates in micrometres where the attribute ``unit`` says so), AtlasPatch (a group
``features`` with one dataset an encoder, five columns of coordinates), a leading axis of one bag, as training programs
save batches, and tensors saved by ``torch.save``, as CLAM's ``pt_files``.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from monai_mil.bags.datasets import find_dataset, refuse_links
from monai_mil.bags.info import is_own
from monai_mil.errors import BagError, DamagedBagError
from monai_mil.sealed import open_hdf5

FEATURE_NAMES = ("features", "feats", "patch_embeddings")
_MICROMETRES = ("um", "µm", "\u03bcm", "micron", "microns", "micrometer", "micrometre")


@dataclass(frozen=True, eq=False)
class Layout:
    """Where a file keeps what a bag is made of.

    Attributes:
        features: the dataset, ``[n, d]`` or ``[n, d, h, w]``.
        name: what it is called, within its file.
        coords: as stored, ``[n, 2]``; None where the file has none.
        file_attributes: those of the file itself.
        coord_attributes: attributes that say what a tile is.
        encoder: name of the encoder, where the file says it.
        in_micrometres: whether ``coords`` are micrometres rather than level-0 pixels.
    """

    features: h5py.Dataset
    name: str
    coords: np.ndarray | None
    file_attributes: Mapping[str, Any]
    coord_attributes: Mapping[str, Any]
    encoder: str | None
    in_micrometres: bool


def open_bag(path: Path) -> h5py.File:
    """The HDF5 file; of a ``.pt`` file one in memory with the same content.

    Raises:
        BagError: it is not there, or may not be read; names it.
        DamagedBagError: it is no feature file.
    """
    if path.suffix.lower() in (".pt", ".pth"):
        return _from_torch(path)
    try:
        return open_hdf5(path)
    except FileNotFoundError:
        raise BagError(f"bag '{path}': no such file; embed the slide or scan first") from None
    except PermissionError as error:
        raise BagError(f"bag '{path}': cannot be read ({error.strerror}); check its permissions") from None
    except ValueError as error:
        raise DamagedBagError(f"bag '{path}': {error}; remove the bag and embed again") from None
    except OSError as error:
        raise DamagedBagError(f"bag '{path}': truncated or not an HDF5 file ({error}); embed it again") from None


def find_layout(path: Path, file: h5py.File, encoder: str | None) -> Layout:
    """Features, coordinates and what describes them.

    Args:
        path: the file, for messages.
        file: the same, open.
        encoder: which features to take where a file has those of several encoders.

    Raises:
        BagError: there are no features, or those of several encoders and ``encoder`` names none of them.
    """
    found = next((name for name in FEATURE_NAMES if file.get(name, getlink=True) is not None), None)
    if found is None:
        raise BagError(f"bag '{path}': no dataset 'features' (it has {sorted(file)}); not a feature file")
    refuse_links(path, file, found)
    made_by = None
    if file.get(found, getclass=True) is h5py.Group:
        found, made_by = _of_encoder(path, file[found], found, encoder)
    features = find_dataset(path, file, found)
    stored = find_dataset(path, file, "coords") if file.get("coords", getlink=True) is not None else None
    coords = None if stored is None else stored[:]
    if coords is not None and coords.ndim == 3 and len(coords) == 1:
        coords = coords[0]
    if coords is not None and coords.ndim == 2 and made_by is not None and coords.shape[1] == 5:
        coords = coords[:, :2]
    if features.ndim == 3 and len(features) == 1:
        features = _in_memory(features[0], features.attrs)
    own = dict(file.attrs)
    if is_own(own) or stored is None:  # ours say all themselves, and an attribute takes HDF5 a while
        attributes = own
    else:
        attributes = own | dict(stored.attrs)
    says = made_by or (None if is_own(own) else features.attrs.get("encoder") or own.get("extractor"))
    unit = str(attributes.get("unit", "")).lower()
    return Layout(features, found, coords, own, attributes, None if says is None else str(says), unit in _MICROMETRES)


def _of_encoder(path: Path, group: h5py.Group, name: str, encoder: str | None) -> tuple[str, str]:
    names = sorted(group)
    chosen = encoder if encoder in names else names[0] if len(names) == 1 else None
    if chosen is None:
        raise BagError(f"bag '{path}': features of several encoders ({', '.join(names)}); name one of them")
    return f"{name}/{chosen}", chosen


def _in_memory(values: np.ndarray, attributes: Mapping[str, Any]) -> h5py.Dataset:
    file = h5py.File(f"{uuid.uuid4()}.h5", "w", driver="core", backing_store=False)
    dataset = file.create_dataset("features", data=values)
    dataset.attrs.update(attributes)
    return dataset


def _from_torch(path: Path) -> h5py.File:
    """A saved tensor, or a dictionary of tensors, as an HDF5 file in memory; CLAM's coordinates from beside it."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BagError(f"bag '{path}': no such file; embed the slide or scan first") from None
    except Exception as error:  # the unpickler raises whatever it meets
        reason = str(error).split("\n", 1)[0]
        raise BagError(f"bag '{path}': no tensor of features can be read from it safely ({reason})") from error
    tensors = {"features": content} if isinstance(content, torch.Tensor) else content
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise BagError(f"bag '{path}': holds neither a tensor of features nor a dictionary of tensors")
    file = h5py.File(f"{uuid.uuid4()}.h5", "w", driver="core", backing_store=False)
    for name, tensor in tensors.items():
        value = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
        file.create_dataset(str(name), data=value.numpy())
    beside = None if "coords" in file else _clam_coords(path)
    if beside is not None:
        with open_hdf5(beside) as other:
            find_dataset(beside, other, "coords")
            other.copy("coords", file)
    return file


def _clam_coords(path: Path) -> Path | None:
    """Where CLAM keeps the coordinates of a ``pt_files/<slide>.pt``; None if they are not there."""
    folder, name = path.parent, f"{path.stem}.h5"
    places = (folder / name, folder.parent / "h5_files" / name, folder.parent / "patches" / name)
    for place in (*places, folder.parent.parent / "patches" / name):
        if place.is_file() and h5py.is_hdf5(place):
            with open_hdf5(place) as file:
                if isinstance(file.get("coords"), h5py.Dataset):
                    return place
    return None
