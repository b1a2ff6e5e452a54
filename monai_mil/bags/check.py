"""Whether the bags of a folder are what was written into them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from monai_mil.bags.file import BagFile
from monai_mil.errors import BagError, DamagedBagError
from monai_mil.sealed import open_hdf5


@dataclass(frozen=True)
class CheckedBag:
    """What became of a bag that was read from end to end.

    Attributes:
        path: the file.
        error: why it cannot be used; None if it can.
        damaged: whether that is damage, which embedding again mends.
        digested: whether it carries digests with which it could be compared.
    """

    path: Path
    error: str | None
    damaged: bool
    digested: bool


def check_bags(folder: Path) -> Iterator[CheckedBag]:
    """Read every bag (``.h5``) of a folder, and of those in it, and compare it with its digests.

    Hidden files and folders, and heatmaps, are passed over.

    Raises:
        BagError: there is no such folder.

    Examples:
        >>> import numpy as np
        >>> from monai_mil.bags import BagFile, BagInfo, check_bags
        >>> BagFile.write(folder / "S-1.h5", np.ones((2, 8)), np.zeros((2, 2), int), BagInfo("S-1"))
        >>> [(bag.path.name, bag.error) for bag in check_bags(folder)]
        [('S-1.h5', None)]
    """
    if not folder.is_dir():
        raise BagError(f"'{folder}' is no folder; name the folder that holds the bags")
    for path in sorted(folder.rglob("*.h5")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden and not _is_heatmap(path):
            yield _checked(path)


def _checked(path: Path) -> CheckedBag:
    try:
        with BagFile(path) as bag:
            bag.verify()
            return CheckedBag(path, None, False, bool(bag.info.digests))
    except BagError as error:
        return CheckedBag(path, str(error), isinstance(error, DamagedBagError), True)


def _is_heatmap(path: Path) -> bool:
    try:
        with open_hdf5(path) as file:
            return "heatmap" in str(file.attrs.get("format", ""))
    except (OSError, ValueError):  # told as a bag that cannot be read
        return False
