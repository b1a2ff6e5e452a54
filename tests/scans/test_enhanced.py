"""Multi-frame CT: one file, its geometry and rescaling frame by frame or shared."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless

from monai_mil.errors import ScanReadError
from monai_mil.scans import find_scans, load_scan, scan_files
from tests.scans.conftest import AXIAL, SERIES, phantom, save, slice_dataset, write_series

ENHANCED = "1.2.840.10008.5.1.4.1.1.2.1"


def item(**attributes) -> Sequence:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return Sequence([dataset])


def enhanced(
    path: Path,
    hu: np.ndarray,
    order: list[int],
    *,
    shared_rescale: bool = True,
    step: float = 2.0,
    attributes: dict | None = None,
    content: dict | None = None,
) -> Path:
    """An Enhanced CT whose frames come in ``order``; frame by frame, the intercept differs.

    ``content[i]`` are the attributes in the FrameContentSequence of the frame of slice ``i``.
    """
    n = len(order)
    intercepts = [-1024 if shared_rescale else -1024 - i for i in range(len(hu))]
    stored = np.stack([hu[i].astype(int) - intercepts[i] for i in order]).astype(np.uint16)
    dataset = slice_dataset(
        stored,
        SOPClassUID=ENHANCED,
        NumberOfFrames=n,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        PixelSpacing=None,
        SliceThickness=None,
        RescaleSlope=None,
        RescaleIntercept=None,
        **(attributes or {}),
    )
    shared, frames = Dataset(), []
    shared.PixelMeasuresSequence = item(PixelSpacing=[0.9, 0.6], SliceThickness=2.0)
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=list(AXIAL))
    for i in order:
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=[1.0, 2.0, step * i])
        if content is not None:
            frame.FrameContentSequence = item(**content[i])
        transformation = item(RescaleSlope=1, RescaleIntercept=intercepts[i], RescaleType="HU")
        (shared if shared_rescale else frame).PixelValueTransformationSequence = transformation
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return save(dataset, path)


@pytest.mark.parametrize("shared_rescale", [True, False])
def test_frames_are_ordered_by_position_and_rescaled_each(tmp_path, shared_rescale):
    hu = phantom(5)
    path = enhanced(tmp_path / "ct.dcm", hu, [3, 0, 4, 1, 2], shared_rescale=shared_rescale)
    scan = load_scan(path)
    assert np.array_equal(scan.hu, hu)
    assert scan.frame.frame_numbers == (2, 4, 5, 1, 3)
    assert len(set(scan.frame.sop_uids)) == 1
    assert scan.frame.spacing == (0.9, 0.6)
    assert scan.frame.origins[3].tolist() == [1, 2, 6]
    assert scan.scan_id == "ct"


def test_a_compressed_enhanced_file_and_its_folder_give_the_same(tmp_path):
    hu = phantom(4)
    path = enhanced(tmp_path / "series" / "ct.dcm", hu, [2, 1, 0, 3])
    plain = load_scan(path.parent)
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    assert np.array_equal(load_scan(path).hu, hu)
    assert np.array_equal(plain.hu, hu)
    assert find_scans(tmp_path) == [path]


def test_a_legacy_converted_series_reads_as_the_series_it_came_from(highdicom, tmp_path):
    folder = write_series(
        tmp_path / "case", phantom(6), PixelSpacing=[0.9, 0.6], StudyDate="20200101", StudyTime="1200"
    )
    datasets = [pydicom.dcmread(path) for path in folder.iterdir()]
    for dataset in datasets:
        for keyword in ("AccessionNumber", "PatientBirthDate", "PatientSex", "StudyID", "ReferringPhysicianName"):
            setattr(dataset, keyword, "")
        dataset.Manufacturer, dataset.SeriesNumber, dataset.PositionReferenceIndicator = "none", 1, ""
        dataset.AcquisitionNumber, dataset.KVP, dataset.ContentDate = 1, 120, "20200101"
        dataset.ContentTime, dataset.AcquisitionDate, dataset.AcquisitionTime = "1200", "20200101", "1200"
    converted = highdicom.legacy.LegacyConvertedEnhancedCTImage(datasets, "1.2.3", 2, "1.2.3.4", 1)
    converted.save_as(tmp_path / "converted.dcm")
    scan, source = load_scan(tmp_path / "converted.dcm"), load_scan(folder)
    assert np.array_equal(scan.hu, source.hu)
    assert scan.affine == pytest.approx(source.affine)


def test_frames_at_one_place_are_refused(tmp_path):
    path = enhanced(tmp_path / "ct.dcm", phantom(4), [0, 1, 2, 3], step=0.0)
    with pytest.raises(ScanReadError, match="different images at the same place"):
        load_scan(path)


def test_a_truncated_multi_frame_file_names_the_frame(tmp_path):
    path = enhanced(tmp_path / "ct.dcm", phantom(4), [0, 1, 2, 3])
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ScanReadError, match=r"ct\.dcm.*truncated at frame 3 of 4"):
        load_scan(path)


def test_frames_without_positions_are_refused(tmp_path):
    dataset = slice_dataset(np.zeros((3, 4, 4), np.uint16), NumberOfFrames=3, SOPClassUID=ENHANCED)
    with pytest.raises(ScanReadError, match="3 frames but positions of 0"):
        load_scan(save(dataset, tmp_path / "ct.dcm"))


def concatenation(folder: Path, hu: np.ndarray, places: list[str]) -> list[Path]:
    """An Enhanced CT in as many parts as there are places for them."""
    return [
        enhanced(
            folder / place,
            hu,
            frames.tolist(),
            attributes={
                "ConcatenationUID": "1.2.3.77",
                "InConcatenationNumber": number,
                "InConcatenationTotalNumber": len(places),
            },
        )
        for number, (place, frames) in enumerate(
            zip(places, np.array_split(np.arange(len(hu)), len(places)), strict=True), 1
        )
    ]


@pytest.mark.parametrize("places", [["c.dcm", "a.dcm", "b.dcm"], ["DIR1/x", "DIR2/y", "DIR2/z"]])
def test_the_parts_of_a_concatenation_are_one_scan(tmp_path, places):
    hu = phantom(7)
    parts = concatenation(tmp_path, hu, places)
    other = (tmp_path / places[0]).with_name("other.dcm")
    enhanced(other, phantom(3, seed=5), [0, 1, 2], attributes={"SeriesInstanceUID": "1.9"})
    found = find_scans(tmp_path)
    assert found == sorted([parts[0], other])
    for part in parts:
        scan = load_scan(part)
        assert np.array_equal(scan.hu, hu)
        assert "stored in 3 files, the parts of a concatenation" in scan.remarks
        assert scan_files(part) == tuple(sorted(parts))
    parts[1].unlink()
    with pytest.raises(ScanReadError, match="part 2 is missing"):
        load_scan(parts[0])
    with pytest.raises(ScanReadError, match="part 2 is missing"):
        load_scan(tmp_path, series_uid=SERIES)


def test_phases_of_one_enhanced_file_are_chosen_between(tmp_path):
    hu = phantom(6)
    content = [{"TemporalPositionIndex": 1 + i % 2, "FrameAcquisitionNumber": 4} for i in range(6)]
    path = enhanced(tmp_path / "ct.dcm", hu, list(range(6)), content=content)
    with pytest.raises(ScanReadError, match=r"3 of acquisition 1 .*, 3 of acquisition 2"):
        load_scan(path)
    assert np.array_equal(load_scan(path, acquisition="2").hu, hu[1::2])
