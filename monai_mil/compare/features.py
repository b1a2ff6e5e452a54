"""What the bags of a cohort are, so that a comparison is not gone on with on others."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from monai_mil.bags import BagFile
from monai_mil.cohorts import Cohort
from monai_mil.errors import BagError
from monai_mil.names import file_stem

_BAGS = (".h5", ".pt", ".pth")


def features_digest(cohort: Cohort, bags: Path, masks: Path | None) -> str:
    """Names and sizes of the cases' bags and masks, and the encoder of the first bag; touching or moving changes none.

    Args:
        cohort: the cases.
        bags: the folder of their bags, or of a folder of bags a level.
        masks: the folder of their ground truth, None without any.
    """
    names = {file_stem(slide.slide_id) for slide in cohort.slides}
    found = [path for path in _files(bags) if path.suffix in _BAGS and path.stem in names]
    told = [f"{path.relative_to(bags).as_posix()} {path.stat().st_size}" for path in found]
    told += [f"{path.name} {path.stat().st_size}" for path in _files(masks) if path.stem.removesuffix("_mask") in names]
    with suppress(BagError, IndexError), BagFile(found[0]) as bag:
        told.append(f"{bag.info.encoder} {bag.info.encoder_digest} {bag.info.mpp} {bag.info.tile_size_level0}")
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]


def _files(folder: Path | None) -> list[Path]:
    return (
        sorted(path for path in folder.rglob("*") if path.is_file()) if folder is not None and folder.is_dir() else []
    )
