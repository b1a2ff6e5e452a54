"""The lungs of one scan in little room, for bags and heatmaps that go with them."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from monai_mil.errors import NoLungsError
from monai_mil.scans.lung import LungMethod, lung_mask
from monai_mil.scans.scan import Scan


@dataclass(frozen=True, eq=False)
class LungField:
    """A lung mask, one bit a voxel and compressed: a hundred slices of 512 x 512 take about 100 kB.

    Attributes:
        method: how it was found (see :func:`lung_mask`).
        shape: slices, rows and columns.
        packed: the bits of every slice, compressed, as text that JSON, HDF5 and MONAI's meta data can hold.
    """

    method: LungMethod
    shape: tuple[int, int, int]
    packed: str

    @classmethod
    def find(cls, scan: Scan, method: LungMethod) -> LungField:
        """The lungs of a scan.

        Raises:
            NoLungsError: there are none.
            ScanReadError: a package is missing.
            SettingsError: an unknown method.
        """
        mask = lung_mask(scan, method)
        if not mask.any():
            raise NoLungsError(
                f"scan '{scan.scan_id}': no lungs were found (method '{method}'); take a scan of the chest, another "
                "method, or embed it without lungs"
            )
        return cls.pack(mask, method)

    @classmethod
    def pack(cls, mask: np.ndarray, method: LungMethod) -> LungField:
        """A mask, bool ``[n, rows, columns]``, in little room."""
        bits = np.packbits(mask.reshape(len(mask), -1), axis=1)
        n, rows, columns = mask.shape
        return cls(method, (n, rows, columns), base64.b85encode(zlib.compress(bits.tobytes(), 6)).decode())

    def inside(self, index: int) -> np.ndarray:
        """Which pixels of slice ``index`` are lung, bool ``[rows, columns]``."""
        _, rows, columns = self.shape
        return np.unpackbits(self._bits[index], count=rows * columns).reshape(rows, columns).astype(bool)

    def to_json(self) -> str:
        """All of it as one JSON object."""
        return json.dumps({"method": self.method, "shape": self.shape, "packed": self.packed})

    @classmethod
    def from_json(cls, text: str) -> LungField:
        """The inverse of :meth:`to_json`."""
        fields = json.loads(text)
        return cls(fields["method"], tuple(fields["shape"]), fields["packed"])

    @cached_property
    def _bits(self) -> np.ndarray:
        bits = np.frombuffer(zlib.decompress(base64.b85decode(self.packed)), np.uint8)
        return bits.reshape(self.shape[0], -1)
