"""Synthetic cohorts of chest CT with planted nodules, as DICOM series or NIfTI files."""

from __future__ import annotations

import csv
import gzip
import io
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from monai_mil.cohorts import Cohort, CohortSlide, split_cohort
from monai_mil.errors import SettingsError
from monai_mil.files import replacing
from monai_mil.scans import ScanFrame
from monai_mil.synthetic.series import SyntheticSeries, synthetic_uid
from monai_mil.synthetic.thorax import SyntheticThorax, plan_thorax

_CLASSES = ("negative", "positive")
_FIELD_MM = 360.0
_FORMATS = ("dicom", "nifti")

_Row = dict[str, object]


def make_scan_cohort(
    folder: str | os.PathLike[str],
    *,
    num_scans: int = 40,
    seed: int = 0,
    slices: tuple[int, int] = (30, 60),
    size: int = 256,
    spacing_mm: float | None = None,
    slice_mm: float = 3.0,
    formats: Sequence[str] = ("dicom",),
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    lesions: int = 1,
    workers: int = 1,
) -> Path:
    """Write chest CT, half of them with solid nodules of 10 to 22 mm in the lung, their masks and the cohort table.

    Vessels of up to the width of a small nodule, the organs' bulges into the lung and small calcified granulomas are
    in both classes. Contrast, dose, habitus and the part of the chest that is scanned differ between patients; some
    patients have two scans. The files of a series are in no order, their InstanceNumbers ascend, descend or follow
    no order.

    Args:
        folder: gets ``scans/<scan_id>/*.dcm`` or ``scans/<scan_id>.nii.gz``, ``masks/<scan_id>.npz`` (see
            ``lesion_truth``), ``slice_labels.csv`` (a row per slice, from the feet to the head,
            with its ``sop_uid`` if all scans are DICOM) and ``cohort.csv``.
        num_scans: how many scans.
        seed: of everything; the same seed gives the same pixels and UIDs.
        slices: fewest and most slices of a scan.
        size: rows and columns.
        spacing_mm: edge of a pixel; None for a field of view of 360 mm.
        slice_mm: thickness and distance of slices.
        formats: ``dicom``, ``nifti``; with both, scans take turns.
        fractions: shares of train, val and test.
        lesions: nodules in a scan that has any.
        workers: processes that paint at the same time.

    Returns:
        Path of ``cohort.csv``: scan_id, patient_id, path, split and label (``negative`` or ``positive``).

    Raises:
        SettingsError: an unknown format.
    """
    if not formats or set(formats) - set(_FORMATS):
        raise SettingsError(f"formats {tuple(formats)}: name at least one of {', '.join(_FORMATS)}, and no other")
    folder = Path(folder)
    write = partial(
        _write_scan,
        folder,
        seed=seed,
        slices=slices,
        size=size,
        spacing=spacing_mm or _FIELD_MM / size,
        slice_mm=slice_mm,
        formats=tuple(formats),
        lesions=lesions,
    )
    if workers > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            written = list(pool.map(write, range(num_scans)))
    else:
        written = [write(index) for index in range(num_scans)]
    _write_labels(folder / "slice_labels.csv", [row for _, rows in written for row in rows])
    scans = tuple(
        CohortSlide(slide_id=_scan_id(index), patient_id=_patient_id(index), path=path, label=index % 2)
        for index, (path, _) in enumerate(written)
    )
    cohort = Cohort(folder / "cohort.csv", scans, ("label",), _CLASSES, id_column="scan_id")
    return split_cohort(cohort, fractions, seed).write(folder / "cohort.csv")


def lesion_truth(mask: str | os.PathLike[str]) -> np.ndarray:
    """The voxels of the planted nodules, from a mask ``make_scan_cohort`` wrote.

    Args:
        mask: ``masks/<scan_id>.npz`` with ``voxels`` (int ``[k, 3]``: slice, row, column) and ``shape``.

    Returns:
        bool ``[n, rows, columns]``, slices from the feet to the head as ``load_scan`` gives them.
    """
    with np.load(mask) as stored:
        truth = np.zeros(stored["shape"], bool)
        truth[tuple(stored["voxels"].T)] = True
    return truth


def _scan_id(index: int) -> str:
    return f"scan_{index:03d}"


def _patient_id(index: int) -> str:
    """Scans 8 and 10 of every twelve belong to one patient, so do 9 and 11."""
    return f"patient_{index - 2 if index % 12 in (10, 11) else index:03d}"


def _write_scan(
    folder: Path,
    index: int,
    *,
    seed: int,
    slices: tuple[int, int],
    size: int,
    spacing: float,
    slice_mm: float,
    formats: tuple[str, ...],
    lesions: int,
) -> tuple[Path, list[_Row]]:
    """Paint one scan into its file or folder, and its mask; gives the path and the rows of ``slice_labels.csv``."""
    own_seed = int(np.random.SeedSequence([seed, index, 2]).generate_state(1)[0])
    rng = np.random.default_rng(own_seed)
    plan = plan_thorax(
        own_seed,
        slices=int(rng.integers(slices[0], slices[1] + 1)),
        size=size,
        spacing=spacing,
        slice_mm=slice_mm,
        lesions=lesions * (index % 2),
    )
    as_dicom = formats[index % (2 * len(formats)) // 2] == "dicom"
    frame = _frame(plan, index, own_seed, with_uids=as_dicom)
    if as_dicom:
        path = folder / "scans" / frame.scan_id
        lesion = _write_dicom(path, plan, frame, rng, index)
    else:
        path = folder / "scans" / f"{frame.scan_id}.nii.gz"
        lesion = _write_nifti(path, plan, frame)
    with replacing(folder / "masks" / f"{frame.scan_id}.npz") as name, name.open("wb") as file:
        np.savez_compressed(file, voxels=lesion, shape=np.array([len(plan), size, size]))
    positive = set(lesion[:, 0].tolist())
    rows: list[_Row] = [
        {"scan_id": frame.scan_id, "slice_index": i, "position_mm": f"{position:.6f}"}
        | ({"sop_uid": frame.sop_uids[i]} if as_dicom else {})
        | {"label": int(i in positive)}
        for i, position in enumerate(frame.positions_mm)
    ]
    return path, rows


def _frame(plan: SyntheticThorax, index: int, seed: int, *, with_uids: bool) -> ScanFrame:
    """Axial slices around the scanner's axis; the table stands at another height for every scan."""
    n, half = len(plan), (plan.size - 1) / 2 * plan.spacing
    bottom = -float(np.random.default_rng([seed, 3]).integers(200, 900))
    heights = bottom + np.arange(n) * plan.slice_mm
    uids = tuple(synthetic_uid(seed, "instance", i) for i in range(n)) if with_uids else ("",) * n
    study, series, reference = (
        synthetic_uid(seed, kind) if with_uids else "" for kind in ("study", "series", "reference")
    )
    return ScanFrame(
        scan_id=_scan_id(index),
        path=None,
        size=(plan.size, plan.size),
        spacing=(plan.spacing, plan.spacing),
        orientation=np.eye(3)[:2],
        origins=np.column_stack([np.full((n, 2), -half), heights]),
        sop_uids=uids,
        frame_numbers=(1,) * n,
        study_uid=study,
        series_uid=series,
        frame_of_reference_uid=reference,
    )


def _write_nifti(path: Path, plan: SyntheticThorax, frame: ScanFrame) -> np.ndarray:
    """Write one volume; gives the lesions' voxels, ``[k, 3]``."""
    import nibabel

    hu = np.empty((len(plan), plan.size, plan.size), np.int16)
    voxels = []
    for i in range(len(plan)):
        hu[i], lesion = plan.paint(i)
        voxels.append(_voxels(i, lesion))
    image = nibabel.Nifti1Image(hu.T, frame.affine)
    image.header.set_xyzt_units("mm")
    with replacing(path) as partial_path:
        partial_path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))
    return np.concatenate(voxels)


def _write_dicom(
    folder: Path, plan: SyntheticThorax, frame: ScanFrame, rng: np.random.Generator, index: int
) -> np.ndarray:
    """Write one series; gives the lesions' voxels, ``[k, 3]``."""
    numbers = np.arange(1, len(plan) + 1)
    numbers = (numbers, numbers[::-1], rng.permutation(numbers))[rng.integers(3)]
    names = rng.permutation(len(plan))
    series = SyntheticSeries(frame, plan.slice_mm, _patient_id(index), int(plan.patient.padding))
    voxels = []
    for i in range(len(plan)):
        hu, lesion = plan.paint(i)
        voxels.append(_voxels(i, lesion))
        series.write(folder / f"IM{names[i]:05d}.dcm", hu, i, int(numbers[i]))
    return np.concatenate(voxels)


def _voxels(index: int, lesion: np.ndarray) -> np.ndarray:
    places = np.argwhere(lesion)
    return np.column_stack([np.full(len(places), index), places]).astype(np.int32)


def _write_labels(path: Path, rows: list[_Row]) -> None:
    """Write one row per slice; ``sop_uid`` is a column if every slice has one."""
    columns = [name for name in rows[0] if all(name in row for row in rows)]
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as partial_path:
        partial_path.write_text(table.getvalue(), encoding="utf-8")
