"""The bag file: features of tiles or slices and where they lie, in HDF5 that TRIDENT's and CLAM's users can read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
import torch

from monai_mil.bags.checksums import BlockChecksums
from monai_mil.bags.datasets import CHECKSUMS, find_dataset
from monai_mil.bags.foreign import Layout, find_layout, open_bag
from monai_mil.bags.info import (
    BAG_FORMAT,
    BagInfo,
    found_from,
    info_attributes,
    placed_in,
    read_info,
    trident_attributes,
)
from monai_mil.bags.storage import TOKEN_MAJOR, MappedFeatures, check_storage, decode, digest_of, write_features
from monai_mil.errors import BagError, DamagedBagError
from monai_mil.files import replacing_hdf5

_READ_ROWS = 64
_READ_BYTES = 4 << 20
_VERIFIED_BYTES = 1 << 24
_CODES = ("feature_scale", "feature_offset")


class BagFile:
    """An open bag: ``n`` instances with features ``[n, d]``, or ``[n, d, h, w]`` where the encoder keeps its grid.

    Our own files carry, in the dataset ``feature_checksums`` (uint32 ``[k]``), the CRC-32 of every block of features of
    up to 4 MiB, of so many rows as its attribute ``rows`` says: what is read of a bag is compared with them, once in a
    process. It is no must: files without it, older ones and those of other programs, are read unchecked. All else in
    the file is under its seal (:mod:`monai_mil.sealed`), 32 bytes behind HDF5's own. Data that lie in another file
    (external storage, external links, virtual datasets) are never read.

    Reads our own files and those of TRIDENT, CLAM (``.h5`` or ``.pt``), INSIGHT, STAMP and AtlasPatch as they are; see
    :mod:`monai_mil.bags.foreign`.

    Args:
        path: the HDF5 file, or CLAM's ``.pt``.
        encoder: whose features to read where a file has those of several encoders (AtlasPatch).
        mpp: micrometres per level-0 pixel of the slide, where a file counts in micrometres (STAMP) and does not say it.

    Attributes:
        info: what the file says about slide, tiles and encoder.
        n: number of instances; TRIDENT writes files without any.
        width: number of feature channels, ``d``.
        grid: ``(h, w)`` of a spatial bag, None for vectors.
        storage: type of the features in the file, for example ``"float16"``; ``"uint8"`` are codes, see ``write``.
        needs_mpp: whether ``coords`` are micrometres for want of ``mpp``.
        coords: level-0 x and y of every tile's upper-left corner, int64 ``[n, 2]``; of a scan the slice's index and 0.
            Micrometres where ``needs_mpp``; 0 where the file has none. ``info.tile_size_level0`` is None then.

    Raises:
        BagError: the file is missing or no bag, its data lie in another file, or it is of a later version; names it.
        DamagedBagError: it is truncated, or holds other than what was written.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.bags import BagFile, BagInfo
        >>> info = BagInfo("S-1", encoder="mine", mpp=0.5, tile_size_level0=256.0, level0_size=(512, 256))
        >>> features, coords = np.ones((2, 8)), np.array([[0, 0], [256, 0]])
        >>> BagFile.write(folder / "S-1.h5", features, coords, info)
        >>> with BagFile(folder / "S-1.h5") as bag:
        ...     print(bag.n, bag.width, bag.info.encoder, bag.features([1]).shape)
        ...
        2 8 mine (1, 8)
    """

    def __init__(self, path: str | os.PathLike[str], *, encoder: str | None = None, mpp: float | None = None) -> None:
        self.path = Path(path)
        self._file = open_bag(self.path)
        try:
            self._read_header(find_layout(self.path, self._file, encoder), mpp)
        except BagError:
            self.close()
            raise
        except Exception as error:  # HDF5, numpy and JSON raise many kinds of errors for damaged files
            self.close()
            raise DamagedBagError(f"bag '{self.path}': damaged ({error}); embed it again") from error

    def _read_header(self, layout: Layout, mpp: float | None) -> None:
        features = layout.features
        self._codes = self._read_codes(features)
        if features.ndim not in (2, 4) or (features.dtype.kind != "f" and self._codes is None):
            raise BagError(
                f"bag '{self.path}': '{layout.name}' is {features.dtype} {list(features.shape)}, "
                "not floating point [n, d] or [n, d, h, w]; give one row per tile"
            )
        if layout.coords is None and self.path.suffix.lower() not in (".pt", ".pth"):
            raise BagError(f"bag '{self.path}': no dataset 'coords' (it has {sorted(self._file)}); not a feature file")
        coords = np.zeros((len(features), 2), np.int64) if layout.coords is None else layout.coords
        if coords.ndim != 2 or coords.shape[1] != 2:
            raise BagError(f"bag '{self.path}': 'coords' has shape {list(coords.shape)}, not [n, 2]")
        if len(features) != len(coords):
            told = f"{len(features)} features but {len(coords)} coords"
            raise DamagedBagError(f"bag '{self.path}': {told}; embed it again")
        self._features = features
        self._checksums = BlockChecksums.of(self.path, self._file, features)
        self._names = {layout.name.partition("/")[0], "coords", CHECKSUMS, *_CODES}
        self._token_major = features.ndim == 4 and features.attrs.get("layout") == TOKEN_MAJOR
        self.storage: str = features.dtype.name
        self.n: int = len(features)
        self.coords: np.ndarray = _whole(self.path, coords, layout.in_micrometres, mpp)
        height_width = features.shape[1:3] if self._token_major else features.shape[2:]
        self.width: int = features.shape[-1] if self._token_major else features.shape[1]
        self.grid: tuple[int, int] | None = (height_width[0], height_width[1]) if features.ndim == 4 else None
        unit = mpp if layout.in_micrometres else None
        self.needs_mpp = layout.in_micrometres and mpp is None
        info = read_info(
            self.path.stem, layout.file_attributes, layout.encoder, layout.coord_attributes, self.coords, unit
        )
        if layout.coords is None:
            info = replace(info, tile_size_level0=None)
        if (info.format or 0) > BAG_FORMAT:
            raise BagError(
                f"bag '{self.path}': written by monai-mil {info.version} in format {info.format}, this one reads up to "
                f"{BAG_FORMAT}; update monai-mil"
            )
        self.info: BagInfo = found_from(info, self.path.parent)
        self._check_digests({"coords": coords} | dict(zip(_CODES, self._codes or (), strict=False)))
        _check_scan(self.path, self.n, self.info)

    def _read_codes(self, features: h5py.Dataset) -> tuple[np.ndarray, np.ndarray] | None:
        """Scale and offset, float32 ``[d]``, of features stored as codes."""
        if features.dtype != np.uint8 or not set(_CODES) <= set(self._file):
            return None
        scale, offset = (self._dataset(name)[:].astype(np.float32) for name in _CODES)
        if not scale.shape == offset.shape == features.shape[-1:]:
            raise BagError(
                f"bag '{self.path}': scale and offset do not fit {features.shape[-1]} channels; embed it again"
            )
        if not np.isfinite([scale, offset]).all():
            raise BagError(f"bag '{self.path}': scale or offset of a channel is NaN or infinite; embed it again")
        return scale, offset

    def _check_digests(self, values: Mapping[str, np.ndarray]) -> None:
        """Compare what was read of whole datasets with their digests, where there are any."""
        for name, read in values.items():
            if name in self.info.digests and digest_of([read]) != self.info.digests[name]:
                raise DamagedBagError(
                    f"bag '{self.path}': '{name}' is not what was written; remove the bag and embed again"
                )

    def _dataset(self, name: str) -> h5py.Dataset:
        return find_dataset(self.path, self._file, name)

    def __enter__(self) -> BagFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; arrays that were read stay valid."""
        self._file.close()

    @property
    def extras(self) -> tuple[str, ...]:
        """Names of the datasets beside ``features`` and ``coords``, for example ``instance_labels``."""
        return tuple(sorted(set(self._file) - self._names))

    def extra(self, name: str) -> np.ndarray:
        """Read one of ``extras``; the first axis is the instance."""
        dataset = self._dataset(name)
        return dataset.asstr()[:] if h5py.check_string_dtype(dataset.dtype) else dataset[:]

    def features(self, rows: slice | Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Read the features of some instances, in the order asked for.

        Args:
            rows: a slice, indices or a boolean mask over the instances; None for all.

        Returns:
            ``[m, d]`` or ``[m, d, h, w]`` in the file's own precision; of codes the features they stand for, float32.

        Raises:
            DamagedBagError: the data cannot be read, or are not what was written.
            IndexError: an index lies outside the bag.
        """
        try:
            if rows is None:
                stored = self._features[:]
                self._check(0, self.n, stored)
            elif isinstance(rows, slice):
                stored = self._slice(rows)
            else:
                wanted = rows if isinstance(rows, np.ndarray) else list(rows)
                stored = self._gather(np.arange(self.n)[wanted])
        except OSError as error:
            raise DamagedBagError(f"bag '{self.path}': features cannot be read ({error}); embed it again") from error
        if not stored.dtype.isnative:
            stored = stored.astype(stored.dtype.newbyteorder("="))
        if self._codes is not None:
            stored = decode(stored, *self._codes)
        return np.moveaxis(stored, -1, 1) if self._token_major else stored

    def chunks(self, rows: int) -> Iterator[np.ndarray]:
        """Yield the features in order, ``rows`` instances at a time, so that memory does not grow with ``n``."""
        for start in range(0, self.n, rows):
            yield self.features(slice(start, start + rows))

    def mapped(self) -> MappedFeatures:
        """The features without reading them, as a memory map that outlives this object.

        Files that other programs have chunked, compressed or stored channel-first cannot be mapped; theirs are read
        into float16 arrays.

        Raises:
            DamagedBagError: the data cannot be read, or are not what was written: they are compared with their
                checksums first, one block after the other.
        """
        if not self._can_be_mapped():
            return MappedFeatures(torch.from_numpy(self._read_half()))
        codes = () if self._codes is None else map(torch.from_numpy, self._codes)
        return MappedFeatures(self._map(), *codes)

    def floats(self) -> torch.Tensor:
        """All features as floating point numbers ``[n, d]`` or ``[n, d, h, w]``, wide enough to be exact.

        Those that stand in the file as float16 or float32 and in one piece stay there, see :meth:`mapped`. Others are
        read, and float64 becomes float32. Of codes the features they stand for are made, float32.

        Raises:
            DamagedBagError: the data cannot be read, or are not what was written.
        """
        if self.storage in ("float16", "float32") and self._can_be_mapped():
            return self._map()
        features = self.features()
        return torch.from_numpy(features if features.itemsize <= 4 else features.astype(np.float32))

    def _can_be_mapped(self) -> bool:
        """Whether the features stand in the file in one piece, as this machine holds numbers, channels innermost."""
        rows_last = self._token_major or self.grid is None
        return self._offset() is not None and self._features.dtype.isnative and rows_last

    def _map(self) -> torch.Tensor:
        """The stored numbers as a private map, checked. PyTorch's map, unlike numpy's, keeps no file descriptor."""
        self._check(0, self.n)
        pages = torch.from_file(str(self.path), shared=False, size=self.path.stat().st_size, dtype=torch.uint8)
        start = self._offset() or 0
        stored = pages.numpy()[start : start + self._features.nbytes].view(self._features.dtype)
        return torch.from_numpy(np.moveaxis(stored.reshape(self._features.shape), -1, 1))

    def _read_half(self) -> np.ndarray:
        """All features in float16, token-major in memory; never twice in memory."""
        stored = np.empty((self.n, *(self.grid or ()), self.width), np.float16)
        features = np.moveaxis(stored, -1, 1)
        step = max(_READ_ROWS, _READ_BYTES // max(1, 4 * int(np.prod(features.shape[1:]))))
        for start in range(0, self.n, step):
            with np.errstate(over="ignore"):
                features[start : start + step] = self.features(slice(start, start + step))
        return features

    def verify(self) -> None:
        """Read everything that has a digest in ``info.digests`` and compare.

        Raises:
            DamagedBagError: a dataset is not what was written, by a fault of disk or transfer for example; names it.
        """
        for name, digest in self.info.digests.items():
            dataset = self._dataset(name)
            rows = max(1, _VERIFIED_BYTES // max(1, dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))))
            with self._readable(name):
                found = digest_of(dataset[start : start + rows] for start in range(0, len(dataset), rows))
            if found != digest:
                raise DamagedBagError(
                    f"bag '{self.path}': '{name}' is not what was written; remove the bag and embed again"
                )
        with self._readable("features"):
            self._check(0, self.n)

    @contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            told = f"'{name}' cannot be read ({error})"
            raise DamagedBagError(f"bag '{self.path}': {told}; embed it again") from error

    def _check(self, start: int, stop: int, stored: np.ndarray | None = None) -> None:
        """Compare the blocks that hold these rows with their checksums, where those are known and not checked yet.

        ``stored`` are all rows, as stored, where they were read already.
        """
        if self._checksums is None:
            return
        for number, rows in self._checksums.blocks(start, stop):
            self._checksums.check(number, self._features[rows] if stored is None else stored[rows])

    def _offset(self) -> int | None:
        """Where the features begin in the file, if they stand there in one piece."""
        return None if self._features.file.driver == "core" else self._features.id.get_offset()

    def _slice(self, rows: slice) -> np.ndarray:
        start, stop, step = rows.indices(self.n)
        if step > 0 and self._offset() is not None:
            self._check(start, stop)
        return self._features[start:stop:step] if step > 0 else self._gather(np.arange(start, stop, step))

    def _gather(self, indices: np.ndarray) -> np.ndarray:
        offset = self._offset()
        if offset is not None and indices.size:
            # A contiguous dataset is a plain array in the file; HDF5's own selection of single rows is far slower.
            if self._checksums is not None:
                for first in np.unique(indices // self._checksums.rows) * self._checksums.rows:
                    self._check(first, first + 1)
            shape = self._features.shape
            return np.memmap(self.path, self._features.dtype, "r", offset, shape)[indices]
        gathered = np.empty((len(indices), *self._features.shape[1:]), self._features.dtype)
        block = max((self._features.chunks or (1,))[0], 64)
        order = np.argsort(indices, kind="stable")
        for wanted in np.split(order, np.flatnonzero(np.diff(indices[order] // block)) + 1):
            if wanted.size:
                first, last = indices[wanted[0]], indices[wanted[-1]]
                gathered[wanted] = self._features[first : last + 1][indices[wanted] - first]
        return gathered

    @staticmethod
    def write(
        path: str | os.PathLike[str],
        features: np.ndarray,
        coords: np.ndarray,
        info: BagInfo,
        extras: Mapping[str, np.ndarray] | None = None,
        storage: str = "float16",
    ) -> None:
        """Write a whole bag or nothing: contiguous, under a temporary name that is renamed at the end.

        Args:
            path: the file to make or replace; its folder is made.
            features: ``[n, d]`` or ``[n, d, h, w]``, floating point; a memory map is copied in blocks. Pixels are
                instances of this second kind, ``d`` their colours: ``[n, 3, h, w]``.
            coords: level-0 x and y of every tile's upper-left corner, integer ``[n, 2]``; of a scan the slice's index
                and 0.
            info: what is known about slide, tiles and encoder.
            extras: further datasets with one row per instance, for example ``instance_labels``.
            storage: ``"float16"``, or ``"uint8"`` for half of it: codes from 0 to 255 on a scale of every channel's
                own, ``feature = feature_offset + feature_scale * code``.

        Raises:
            BagError: a feature is NaN or beyond float16, or lengths differ; names the file.
            OutputError: the file cannot be written, because the disk is full for example.
            SettingsError: there is no such storage.
        """
        check_storage(storage)
        path, coords, extras = Path(path), np.asarray(coords), dict(extras or {})
        _check_shapes(path, features, coords, extras)
        _check_scan(path, len(features), info)
        with replacing_hdf5(path, apart="features") as file:
            dataset, digests = write_features(path, file, features, storage)
            encoder = "None" if info.encoder is None else info.encoder
            dataset.attrs.update({"name": info.slide_id, "savetodir": "None", "encoder": encoder})
            stored = file.create_dataset("coords", data=coords.astype(np.int64, copy=False))
            stored.attrs.update(trident_attributes(info))
            digests["coords"] = digest_of([coords.astype(np.int64, copy=False)])
            for name, values in extras.items():
                text = values.dtype.kind in "UO"
                file.create_dataset(
                    name,
                    data=values.astype(object) if text else values,
                    dtype=h5py.string_dtype() if text else values.dtype,
                )
            file.attrs.update(info_attributes(replace(placed_in(info, path.parent), digests=digests)))


def _whole(path: Path, coords: np.ndarray, in_micrometres: bool, mpp: float | None) -> np.ndarray:
    """Coordinates as int64; BagError where one is no number, or no whole pixel."""
    if coords.dtype.kind in "iu" and not in_micrometres:
        return coords.astype(np.int64, copy=False)
    values = coords.astype(np.float64)
    bad = ~np.isfinite(values).all(axis=1)
    if not in_micrometres:
        bad |= (values != np.round(values)).any(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        raise BagError(
            f"bag '{path}': the coordinates of instance {row} are {coords[row].tolist()}, no whole level-0 pixels; "
            "write pixels, or the attribute unit='um' if they are micrometres"
        )
    return np.round(values / (mpp or 1.0) if in_micrometres else values).astype(np.int64)


def _check_shapes(path: Path, features: np.ndarray, coords: np.ndarray, extras: Mapping[str, np.ndarray]) -> None:
    if features.ndim not in (2, 4):
        raise BagError(f"bag '{path}': features have shape {list(features.shape)}, not [n, d] or [n, d, h, w]")
    if features.ndim == 4 and _is_channel_last(*features.shape[1:]):
        raise BagError(
            f"bag '{path}': features of shape {list(features.shape)} look like [n, h, w, d]; give [n, d, h, w], for "
            "example with numpy.moveaxis(features, -1, 1)"
        )
    if coords.shape != (len(features), 2) or coords.dtype.kind not in "iu":
        raise BagError(
            f"bag '{path}': coords are {coords.dtype} {list(coords.shape)}, not integer [{len(features)}, 2]; "
            "give the level-0 x and y of every tile"
        )
    for name, values in extras.items():
        if len(values) != len(features):
            raise BagError(f"bag '{path}': '{name}' has {len(values)} rows for {len(features)} instances")


def _is_channel_last(first: int, second: int, third: int) -> bool:
    """Whether three axes look like height, width and channels: a square in front of something else, or a long end."""
    return first == second != third or third > 4 * max(first, second) >= 8


def _check_scan(path: Path, n: int, info: BagInfo) -> None:
    expected = info.scan_instances()
    if expected is not None and len(expected) != n:
        raise BagError(f"bag '{path}': {n} instances for the {len(expected)} slices of its scan; embed it again")


def level_folder(folder: Path, level: int | None) -> Path:
    """Where the files of a quadtree's level lie below ``folder``; ``folder`` itself where there is no tree."""
    return folder if level is None else folder / f"level_{level}"
