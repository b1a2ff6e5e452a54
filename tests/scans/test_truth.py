"""Ground truth of scans: volumes on any grid and DICOM segmentations, on the scan's own voxels."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from monai_mil.errors import AnnotationError
from monai_mil.scans import ScanFrame, find_scan_truth, read_scan_truth, volume_scan
from tests.heatmaps.examples import scan_frame

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


@pytest.fixture
def frame() -> ScanFrame:
    return scan_frame(range(0, 24, 4), size=(10, 14), tilt=0.2)


@pytest.fixture
def mask(frame: ScanFrame) -> np.ndarray:
    """Labels 1 and 3, none at the centre of anything."""
    found = np.zeros(frame.shape, np.uint8)
    found[1:3, 2:5, 3:9] = 1
    found[3, 6, 11] = found[0, 0, 0] = found[-1, -1, -1] = 3
    return found


def write_volume(path: Path, labels: np.ndarray, affine: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(labels.T, affine), path)
    return path


def segment(path: Path, frames: list[tuple[int, int, np.ndarray]], source: ScanFrame, **changes: object) -> Path:
    """A DICOM segmentation of ``(segment, slice of the source, pixels)``; segments 1 'Nodule' and 2 'Lung'."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.Modality, data.SegmentationType = SEGMENTATION, "SEG", "BINARY"
    data.SegmentSequence = []
    for number, label in ((1, "Nodule"), (2, "Lung")):
        item = Dataset()
        item.SegmentNumber, item.SegmentLabel = number, label
        data.SegmentSequence.append(item)
    data.Rows, data.Columns = frames[0][2].shape
    data.NumberOfFrames, data.SamplesPerPixel, data.PixelRepresentation = len(frames), 1, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    shared = Dataset()
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [float(side) for side in changes.pop("spacing", source.spacing)]
    shared.PlaneOrientationSequence = [Dataset()]
    orientation = changes.pop("orientation", source.orientation)
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = np.ravel(orientation).tolist()
    data.SharedFunctionalGroupsSequence = [shared]
    data.PerFrameFunctionalGroupsSequence = []
    shift = changes.pop("shift", np.zeros(3))
    for number, index, _ in frames:
        own = Dataset()
        own.PlanePositionSequence, own.SegmentIdentificationSequence = [Dataset()], [Dataset()]
        own.PlanePositionSequence[0].ImagePositionPatient = (source.origins[index] + shift).tolist()
        own.SegmentIdentificationSequence[0].ReferencedSegmentNumber = number
        data.PerFrameFunctionalGroupsSequence.append(own)
    pixels = np.stack([each for *_, each in frames])
    data.BitsAllocated = data.BitsStored = 1
    packed = np.packbits(pixels.ravel() > 0, bitorder="little").tobytes()
    for name, value in changes.items():
        setattr(data, name, value)
    if data.SegmentationType != "BINARY":
        data.BitsAllocated = data.BitsStored = 8
        packed = pixels.astype(np.uint8).tobytes()
    data.HighBit = data.BitsStored - 1
    data.PixelData = packed + bytes(len(packed) % 2)
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = data.SOPClassUID, "1.2.3"
    data.save_as(path, enforce_file_format=True)
    return path


def test_a_volume_on_the_scan_s_grid_is_read_voxel_by_voxel(tmp_path, frame, mask):
    path = write_volume(tmp_path / "scan.nii.gz", mask, frame.affine)
    assert (read_scan_truth(path, frame) == (mask > 0)).all()
    assert (read_scan_truth(path, frame, 3) == (mask == 3)).all()


def test_the_order_of_a_volume_s_axes_does_not_matter(tmp_path, frame, mask):
    image = nibabel.Nifti1Image(mask.T, frame.affine)
    turned = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nibabel.save(turned, tmp_path / "scan.nii")
    assert (read_scan_truth(tmp_path / "scan.nii", frame) == (mask > 0)).all()


def test_a_volume_of_finer_and_larger_voxels_covers_the_same_place(tmp_path, frame, mask):
    fine = np.repeat(np.repeat(mask, 2, axis=1), 3, axis=2)
    affine = frame.affine @ np.diag([1 / 3, 1 / 2, 1, 1])
    affine[:3, 3] = (frame.affine @ [-1 / 3, -1 / 4, 0, 1])[:3]
    assert (read_scan_truth(write_volume(tmp_path / "fine.nii", fine, affine), frame) == (mask > 0)).all()
    padded = np.pad(mask, ((2, 0), (0, 0), (3, 1)))
    affine = frame.affine.copy()
    affine[:3, 3] = (frame.affine @ [-3, 0, -2, 1])[:3]
    assert (read_scan_truth(write_volume(tmp_path / "large.nii", padded, affine), frame) == (mask > 0)).all()


def test_a_volume_of_another_scan_is_refused(tmp_path, frame, mask):
    affine = frame.affine.copy()
    affine[:3, 3] += 300
    with pytest.raises(AnnotationError, match=r"other\.nii': 100 % of it lies outside the scan"):
        read_scan_truth(write_volume(tmp_path / "other.nii", mask, affine), frame)


def test_what_is_no_volume_of_labels_is_refused(tmp_path, frame, mask):
    path = write_volume(tmp_path / "soft.nii", mask * np.float32(0.4), frame.affine)
    with pytest.raises(AnnotationError, match="no volume of labels"):
        read_scan_truth(path, frame)
    path = write_volume(tmp_path / "labels.nii", mask, frame.affine)
    with pytest.raises(AnnotationError, match="no label 7; it has 1, 3"):
        read_scan_truth(path, frame, 7)
    with pytest.raises(AnnotationError, match="labels of a volume are numbers"):
        read_scan_truth(path, frame, "nodule")
    path.write_bytes(b"not a volume")
    with pytest.raises(AnnotationError, match=r"labels\.nii': cannot be read"):
        read_scan_truth(path, frame)


def test_a_segmentation_holds_the_frames_that_have_the_finding_only(tmp_path, frame, mask):
    wanted = [index for index in range(len(frame)) if (mask[index] > 0).any()]
    frames = [(1, index, mask[index] > 0) for index in reversed(wanted)]
    lung = np.ones(frame.size, np.uint8)
    path = segment(tmp_path / "scan.dcm", [*frames, (2, 0, lung)], frame)
    assert (read_scan_truth(path, frame, 1) == (mask > 0)).all()
    assert (read_scan_truth(path, frame, "nodule") == (mask > 0)).all()
    assert read_scan_truth(path, frame)[0].all()
    with pytest.raises(AnnotationError, match="no segment 'tumour'; it has 1 'Nodule', 2 'Lung'"):
        read_scan_truth(path, frame, "tumour")


def test_fractions_count_from_one_half_and_label_maps_by_their_number(tmp_path, frame, mask):
    frames = [(1, index, np.where(mask[index] == 1, 100, 90 * (mask[index] == 3))) for index in range(len(frame))]
    fractional = {"SegmentationType": "FRACTIONAL", "MaximumFractionalValue": 200}
    path = segment(tmp_path / "fractional.dcm", frames, frame, **fractional)
    assert (read_scan_truth(path, frame) == (mask == 1)).all()
    frames = [(1, index, np.where(mask[index] == 3, 2, mask[index])) for index in range(len(frame))]
    path = segment(tmp_path / "labels.dcm", frames, frame, SegmentationType="LABELMAP")
    assert (read_scan_truth(path, frame, "lung") == (mask == 3)).all()


def test_a_segmentation_lies_on_the_slices_of_the_scan_s_source(tmp_path):
    """Sagittal slices: the scan turns them into axial ones, a segmentation of the series has them as they were."""
    affine = np.array([[0.0, 0, 3, -20], [1, 0, 0, 5], [0, -1, 0, 40], [0, 0, 0, 1]])
    scan = volume_scan(np.zeros((9, 8, 6), np.int16), affine, "scan")
    source = scan.frame.source
    assert scan.frame.turn is not None
    truth = np.random.default_rng(0).random(scan.frame.shape) < 0.2
    planes = scan.frame.to_source(truth)
    path = segment(tmp_path / "scan.dcm", [(1, index, planes[index]) for index in range(len(source))], source)
    assert (read_scan_truth(path, scan.frame) == truth).all()
    volume = write_volume(tmp_path / "scan.nii", planes.astype(np.uint8), source.affine)
    assert (read_scan_truth(volume, scan.frame) == truth).all()


def test_a_segmentation_s_pixels_may_be_finer_but_its_planes_must_fit(tmp_path, frame, mask):
    fine = np.repeat(np.repeat(mask > 0, 2, axis=1), 2, axis=2)
    spacing = tuple(side / 2 for side in frame.spacing)
    shift = -0.25 * (frame.orientation[0] * frame.spacing[1] + frame.orientation[1] * frame.spacing[0])
    frames = [(1, index, fine[index]) for index in range(len(frame))]
    path = segment(tmp_path / "fine.dcm", frames, frame, spacing=spacing, shift=shift)
    assert (read_scan_truth(path, frame) == (mask > 0)).all()
    path = segment(tmp_path / "beside.dcm", frames, frame, shift=np.array([0, 0, 30.0]))
    with pytest.raises(AnnotationError, match=r"frame 1 lies 10\.0 mm beside|frame \d lies .* mm beside the nearest"):
        read_scan_truth(path, frame)
    path = segment(tmp_path / "across.dcm", frames, frame, orientation=np.eye(3)[[0, 2]])
    with pytest.raises(AnnotationError, match="frame 1 is not parallel"):
        read_scan_truth(path, frame)
    path = segment(tmp_path / "ct.dcm", frames, frame, SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT")
    with pytest.raises(AnnotationError, match="no DICOM segmentation but CT"):
        read_scan_truth(path, frame)
    path = segment(tmp_path / "cut.dcm", frames, frame, NumberOfFrames=len(frames) + 4)
    with pytest.raises(AnnotationError, match=r"cut\.dcm': its frames cannot be read"):
        read_scan_truth(path, frame)


def test_the_voxels_of_a_synthetic_cohort_are_read(tmp_path, frame, mask):
    np.savez(tmp_path / "scan.npz", voxels=np.argwhere(mask), shape=np.array(mask.shape))
    assert (read_scan_truth(tmp_path / "scan.npz", frame) == (mask > 0)).all()
    np.savez(tmp_path / "scan.npz", voxels=np.argwhere(mask), shape=np.array([2, 3, 4]))
    with pytest.raises(AnnotationError, match=r"it is of \(2, 3, 4\) voxels, the scan has \(6, 10, 14\)"):
        read_scan_truth(tmp_path / "scan.npz", frame)
    (tmp_path / "scan.npz").write_bytes(b"")
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_scan_truth(tmp_path / "scan.npz", frame)


def test_a_truth_is_found_by_the_scan_s_name(tmp_path):
    with pytest.raises(AnnotationError, match=r"scan 'a': no ground truth in .*; name it 'a', 'a_mask' or 'a_seg'"):
        find_scan_truth(tmp_path, "a")
    (tmp_path / "a").mkdir()
    for name in ("one", "two"):
        (tmp_path / "a" / name).touch()
    with pytest.raises(AnnotationError, match="holds 2 files"):
        find_scan_truth(tmp_path, "a")
    (tmp_path / "a" / "two").unlink()
    assert find_scan_truth(tmp_path, "a") == tmp_path / "a" / "one"
    for name in ("a_seg.dcm", "a_mask.nii.gz"):
        (tmp_path / name).touch()
        assert find_scan_truth(tmp_path, "a") == tmp_path / name
