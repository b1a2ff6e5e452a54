"""Results lie where the finding is, whatever way the series was acquired."""

import numpy as np
import pytest

from monai_mil.dicom import scan_source, write_parametric_map, write_segmentation
from monai_mil.errors import DicomError
from monai_mil.heatmaps import export_nifti, export_nifti_mask
from monai_mil.scans import load_scan
from tests.dicom.examples import (
    ALGORITHM,
    CALLED,
    LESION,
    SPACING,
    frames_of,
    instance_of,
    places_of,
    plain_series,
    planted,
    read,
    series,
    values_of,
)
from tests.scans.test_enhanced import enhanced

AXIAL = (1, 0, 0, 0, 1, 0)
TILT = np.deg2rad(15)
TURN = np.deg2rad(20)
GEOMETRIES = {
    "axial": (AXIAL, (0, 0, 2.5)),
    "from head to feet": (AXIAL, (0, 0, -2.5)),
    "reversed normal": ((1, 0, 0, 0, -1, 0), (0, 0, 2.5)),
    "prone": ((-1, 0, 0, 0, -1, 0), (0, 0, 2.5)),
    "coronal": ((1, 0, 0, 0, 0, -1), (0, 2.5, 0)),
    "sagittal": ((0, 1, 0, 0, 0, -1), (2.5, 0, 0)),
    "oblique": (
        (np.cos(TURN), np.sin(TURN), 0, -np.sin(TURN) * np.cos(TILT), np.cos(TURN) * np.cos(TILT), np.sin(TILT)),
        2.5 * np.array([np.sin(TURN) * np.sin(TILT), -np.cos(TURN) * np.sin(TILT), np.cos(TILT)]),
    ),
    "tilted gantry": ((1, 0, 0, 0, np.cos(TILT), np.sin(TILT)), (0, 0, 2.5)),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_lesion_is_where_it_was_planted(name, tmp_path):
    orientation, step = GEOMETRIES[name]
    scan = load_scan(series(tmp_path / "series", orientation, step))
    heatmap, source = planted(scan), scan_source(scan.frame)
    half = np.array([*SPACING, np.linalg.norm(step)]).min() / 2
    for form in (write_parametric_map, write_segmentation):
        made = read(form(tmp_path / "made.dcm", source, heatmap, ALGORITHM))
        values = np.where(values_of(made) > 0.05, values_of(made), 0).astype(float)
        centre = (places_of(made) * values[..., None]).sum(axis=(0, 1, 2)) / values.sum()
        assert np.linalg.norm(centre - LESION) < half, (form, centre)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_frame_has_the_scores_of_its_own_instance(name, tmp_path):
    scan = load_scan(series(tmp_path / "series", *GEOMETRIES[name]))
    heatmap = planted(scan)
    made = read(write_parametric_map(tmp_path / "pm.dcm", scan_source(scan.frame), heatmap, ALGORITHM))
    frame = scan.frame.source
    smooth = np.stack([heatmap.slice_map(index, smooth=True) for index in range(len(heatmap))])
    volume = scan.frame.to_source(smooth)
    wanted = {uid: (origin, values) for uid, origin, values in zip(frame.sop_uids, frame.origins, volume, strict=True)}
    assert len(frames_of(made)) == len(wanted)
    for item, values in zip(frames_of(made), values_of(made), strict=True):
        origin, expected = wanted.pop(instance_of(item)[0])
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_allclose(item.PlanePositionSequence[0].ImagePositionPatient, origin, atol=1e-6)
    assert not wanted


def test_highdicom_reads_the_nifti_s_voxels_and_the_source_s_grid(tmp_path):
    import highdicom
    import nibabel

    scan = load_scan(plain_series(tmp_path / "series"))
    heatmap, source = planted(scan), scan_source(scan.frame)
    pairs = (
        (write_parametric_map, export_nifti, {"smooth": True}),
        (write_segmentation, export_nifti_mask, {}),
    )
    for form, export, options in pairs:
        image = nibabel.load(export(heatmap, tmp_path / "a.nii.gz", **options))
        volume = highdicom.imread(form(tmp_path / "a.dcm", source, heatmap, ALGORITHM)).get_volume(
            **({"dtype": np.float32} if form is write_parametric_map else {})
        )
        to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine  # of (column, row, slice)
        array = np.asarray(volume.array).reshape(volume.spatial_shape)
        places = volume.affine[2, 3] + volume.affine[2, 0] * np.arange(len(array))
        slices = np.rint((places - to_lps[2, 3]) / 2.5).astype(int)
        np.testing.assert_array_equal(array, image.get_fdata().T[slices])
        np.testing.assert_allclose(volume.affine[:2, [2, 1, 3]], to_lps[:2, [0, 1, 3]], atol=1e-6)


def test_unevenly_spaced_slices_keep_their_places(tmp_path):
    def change(index, dataset):
        dataset.ImagePositionPatient = [0.0, 0.0, float([0, 2, 4, 6, 8, 13, 18, 23, 28][index])]

    scan = load_scan(plain_series(tmp_path / "series", change=change))
    made = read(write_parametric_map(tmp_path / "pm.dcm", scan_source(scan.frame), planted(scan), ALGORITHM))
    places = [float(item.PlanePositionSequence[0].ImagePositionPatient[2]) for item in frames_of(made)]
    assert sorted(places) == [0, 2, 4, 6, 8, 13, 18, 23, 28]


def test_enhanced_ct_has_one_frame_for_each_of_its_frames(tmp_path):
    order = [3, 0, 4, 1, 2]
    path = enhanced(tmp_path / "ct.dcm", np.zeros((5, 12, 16), np.int16), order)
    scan = load_scan(path)
    scores = np.arange(1, 6, dtype=np.float32) / 10
    heatmap = planted(scan)
    heatmap = type(heatmap)(scan.frame, scores, "heatmap", CALLED, threshold=0.35)
    source = scan_source(scan.frame)
    for form, expected in ((write_parametric_map, scores), (write_segmentation, [0, 0, 0, 1, 1])):
        made = read(form(tmp_path / "a.dcm", source, heatmap, ALGORITHM))
        found = {}
        for item, values in zip(frames_of(made), values_of(made), strict=True):
            index = order[instance_of(item)[1] - 1]
            found[index] = float(values[0, 0])
            assert item.PlanePositionSequence[0].ImagePositionPatient == [1, 2, 2.0 * index]
        assert found == pytest.approx({index: value for index, value in enumerate(expected) if value})
        assert made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [0.9, 0.6]


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient"])
def test_a_series_that_does_not_say_where_it_lies_gets_no_map(tmp_path, keyword):
    path = plain_series(tmp_path / "series", change=lambda _, dataset: delattr(dataset, keyword))
    scan = load_scan(path)
    with pytest.raises(DicomError, match=f"no {keyword}"):
        write_parametric_map(tmp_path / "pm.dcm", scan_source(scan.frame), planted(scan), ALGORITHM)
    assert not (tmp_path / "pm.dcm").exists()


def test_slices_with_a_frame_of_reference_each_have_that_of_the_first(tmp_path):
    def change(index, dataset):
        dataset.FrameOfReferenceUID = f"1.2.3.{index + 1}"

    scan = load_scan(plain_series(tmp_path / "series", change=change))
    for form in (write_parametric_map, write_segmentation):
        made = read(form(tmp_path / "a.dcm", scan_source(scan.frame), planted(scan), ALGORITHM))
        assert made.FrameOfReferenceUID == "1.2.3.1"
