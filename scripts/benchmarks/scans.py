"""From a DICOM series to features: reading beside the bare files, slices beside plain PyTorch, one thread."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.harness import Figure, cpu_seconds
from monai_mil.encoders import get_encoder
from monai_mil.scans import load_scan, prepare_slices, slice_preset

_SLICES, _SIZE, _SIDE = 200, 512, 224


def run() -> list[Figure]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            hu = np.random.default_rng(0).integers(-1000, 1000, (_SLICES, _SIZE, _SIZE)).astype(np.int16)
            _write_series(Path(folder), hu)
            return [*_reading(Path(folder)), *_slices(hu[:64])]
    finally:
        torch.set_num_threads(threads)


def _reading(folder: Path) -> list[Figure]:
    seconds = cpu_seconds({"ours": lambda: load_scan(folder), "bare": lambda: _read_files(folder)})
    return [
        Figure("reading a DICOM series of 512 x 512, a slice", 1e3 * seconds["ours"] / _SLICES, "ms CPU"),
        Figure("  its files without a look inside", 1e3 * seconds["bare"] / _SLICES, "ms CPU"),
    ]


def _slices(hu: np.ndarray) -> list[Figure]:
    preset, encoder = slice_preset("chest_rsna"), get_encoder("ct_texture")
    images = prepare_slices(hu, preset, _SIDE)
    difference = (images - _prepare_plainly(hu)).abs().max().item()
    seconds = cpu_seconds(
        {
            "ours": lambda: prepare_slices(hu, preset, _SIDE),
            "plain": lambda: _prepare_plainly(hu),
            "encoder": lambda: encoder.encode(images),
        }
    )
    return [
        Figure("three windows and 224 x 224, a slice", 1e3 * seconds["ours"] / len(hu), "ms CPU", "<= 10"),
        Figure("  plain PyTorch takes longer by", seconds["plain"] / seconds["ours"], "times", ">= 1"),
        Figure("  largest difference", difference, "", "<= 1e-4"),
        Figure("ct_texture, a slice", 1e3 * seconds["encoder"] / len(hu), "ms CPU", "<= 10"),
    ]


def _prepare_plainly(hu: np.ndarray) -> torch.Tensor:
    """Windows of the whole stack, then one antialiased resize."""
    preset = slice_preset("chest_rsna")
    stack = torch.from_numpy(hu).float()
    channels = [((stack - window.low) / window.width).clamp(0, 1) for window in preset.windows]
    images = F.interpolate(torch.stack(channels, dim=1), size=(_SIDE, _SIDE), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preset.mean, preset.std))
    return (images - mean) / std


def _read_files(folder: Path) -> int:
    return sum(len(path.read_bytes()) for path in folder.iterdir())


def _write_series(folder: Path, hu: np.ndarray) -> None:
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    series, study = generate_uid(), generate_uid()
    for index, stored in enumerate(hu):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.Modality = series, study, "CT"
        dataset.InstanceNumber, dataset.ImagePositionPatient = index + 1, [0.0, 0.0, 2.0 * index]
        dataset.ImageOrientationPatient, dataset.PixelSpacing = [1.0, 0, 0, 0, 1, 0], [0.7, 0.7]
        dataset.Rows = dataset.Columns = _SIZE
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.SliceThickness = 1, 0, 2.0
        dataset.PixelData = stored.tobytes()
        pydicom.dcmwrite(folder / f"{index:04d}.dcm", dataset)
