import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from monai_mil.errors import CohortError, SettingsError
from monai_mil.heatmaps import ScanHeatmap
from monai_mil.savers import SliceSaver
from monai_mil.scans import Depth, LungField
from tests.heatmaps.examples import scan_frame


def save(folder, frame, heatmap, depth=None, lungs=None, **options):
    """Write one case whose network gave ``heatmap`` ``[m, h, w]``; gives the saver."""
    m = len(heatmap)
    first = np.arange(m) if depth is None else depth.indices(len(frame))
    meta = {
        "scan_frame": frame.to_json(),
        "scan_depth": "" if depth is None else depth.to_json(),
        "scan_lungs": "" if lungs is None else lungs.to_json(),
    }
    item = {
        "image": MetaTensor(torch.zeros(2, m), meta=meta),
        "scan_id": "scan",
        "coords": torch.from_numpy(np.stack([first, 0 * first], axis=1)),
        "heatmap": torch.as_tensor(heatmap, dtype=torch.float32)[None],
        "threshold": torch.tensor([0.3]),
        "pred": torch.tensor([0.8]),
    }
    settings = {"formats": ("nifti", "mask"), "classes": ("negative", "positive"), "threshold": "network"} | options
    saver = SliceSaver(str(folder), **settings)
    engine = Engine(lambda engine, item: [item])
    saver.attach(engine)
    engine.run([item])
    return saver


def centre_of_mass(path):
    """In mm, LPS."""
    image = nibabel.load(path)
    values = image.get_fdata()
    index = [(values * axis).sum() / values.sum() for axis in np.ogrid[tuple(map(slice, values.shape))]]
    return (image.affine @ [*index, 1])[:3] * (-1, -1, 1)


@pytest.mark.parametrize("n", [19, 32, 55, 90])
@pytest.mark.parametrize("size", [(61, 61), (47, 80), (80, 53)])
@pytest.mark.parametrize("tilt", [0.0, 0.3])
def test_a_bright_cell_lies_in_the_patient_where_the_network_saw_it(tmp_path, n, size, tilt):
    frame = scan_frame(np.arange(n) * 2.5 - 400, size=size, tilt=tilt)
    layer, row, column = 13, 20, 15
    cells = np.zeros((32, 37, 37))
    cells[layer, row, column] = 1.0
    save(tmp_path, frame, cells, Depth(32)).raise_failures()
    side = max(size)
    pixel_row = (row + 0.5) * side / 37 - 0.5 - (side - size[0]) // 2
    pixel_column = (column + 0.5) * side / 37 - 0.5 - (side - size[1]) // 2
    slice_place = (layer + 0.5) * n / 32 - 0.5
    step = frame.origins[1] - frame.origins[0]
    expected = (
        frame.origins[0]
        + pixel_column * frame.spacing[1] * frame.orientation[0]
        + pixel_row * frame.spacing[0] * frame.orientation[1]
        + slice_place * step
    )
    half = np.array([side / 37 * frame.spacing[1], side / 37 * frame.spacing[0], max(1, n / 32) * 2.5]) / 2
    half[1] += tilt * half[2]  # half a step between tilted slices moves along the rows too
    # fewer slices than layers average layers, so that a single one may stay below the threshold
    for name in ("scan.nii.gz", "scan_mask.nii.gz") if n >= 32 else ("scan.nii.gz",):
        off = np.abs(centre_of_mass(tmp_path / "heatmaps" / name) - expected)
        assert (off <= half).all(), f"{name}: {off} mm beside, half a cell is {half}"


def test_outside_the_lungs_there_is_nothing(tmp_path):
    frame = scan_frame(np.arange(9) * 3.0, size=(40, 40))
    inside = np.zeros((9, 40, 40), bool)
    inside[2:6, 5:20, 8:30] = True
    lungs = LungField.pack(inside, "threshold")
    cells = np.full((9, 5, 5), 0.5)
    cells[7, 2, 2] = 0.9
    cells[4, 4, 4] = 0.8
    save(tmp_path, frame, cells, lungs=lungs).raise_failures()
    scores = nibabel.load(tmp_path / "heatmaps" / "scan.nii.gz").get_fdata().T
    mask = nibabel.load(tmp_path / "heatmaps" / "scan_mask.nii.gz").get_fdata().T
    assert (scores[~inside] == 0).all()
    np.testing.assert_array_equal(mask > 0, inside)
    heatmap = ScanHeatmap.load(tmp_path / "heatmaps" / "scan.h5")
    assert heatmap.slice_scores.tolist() == [0, 0, 0.5, 0.5, 0.5, 0.5, 0, 0, 0], "cells beside the lungs do not count"
    np.testing.assert_array_equal(heatmap.lungs.inside(3), inside[3])


def test_a_smooth_map_stays_between_the_lowest_and_highest_score():
    scores = (np.random.default_rng(0).random((10, 5, 5)) > 0.5).astype(float)
    heatmap = ScanHeatmap(scan_frame(size=(50, 50)), scores, threshold=0.5)
    smooth = np.stack([heatmap.slice_map(index, smooth=True) for index in range(10)])
    assert (smooth.min(), smooth.max()) == (0, 1)
    assert len(np.unique(smooth)) > 1000
    np.testing.assert_array_equal(heatmap.foreground(3), smooth[3] > 0.5)


def test_a_scan_below_its_operating_point_has_no_foreground(tmp_path):
    cells = np.random.default_rng(0).random((10, 4, 4))
    save(tmp_path, scan_frame(), cells, formats=("curve", "mask"), operating_points=[0.9]).raise_failures()
    assert np.isinf(ScanHeatmap.load(tmp_path / "heatmaps" / "scan.h5").threshold)
    assert not nibabel.load(tmp_path / "heatmaps" / "scan_mask.nii.gz").get_fdata().any()


@pytest.mark.parametrize(
    ("options", "threshold"), [({}, 0.3), ({"min_threshold": 0.4}, 0.4), ({"threshold": 0.7}, 0.7)]
)
def test_the_threshold_is_the_network_s_unless_another_is_given(tmp_path, options, threshold):
    save(tmp_path, scan_frame(), np.random.default_rng(0).random((10, 4, 4)), **options).raise_failures()
    heatmap = ScanHeatmap.load(tmp_path / "heatmaps" / "scan.h5")
    assert heatmap.threshold == pytest.approx(threshold)
    mask = nibabel.load(tmp_path / "heatmaps" / "scan_mask.nii.gz").get_fdata().T
    np.testing.assert_array_equal(mask[4] > 0, heatmap.slice_map(4, smooth=True) > heatmap.threshold)


def test_masks_need_a_threshold():
    with pytest.raises(SettingsError, match='"mask" needs a threshold'):
        SliceSaver("out", formats=["mask"])


def test_what_the_middle_left_out_scores_nothing(tmp_path):
    cells = np.random.default_rng(0).random((4, 3, 3)) + 0.1
    save(tmp_path, scan_frame(), cells, Depth(4, "middle")).raise_failures()
    heatmap = ScanHeatmap.load(tmp_path / "heatmaps" / "scan.h5")
    np.testing.assert_array_equal(heatmap.scores[3:7], cells.astype(np.float32))
    assert not heatmap.scores[[0, 1, 2, 7, 8, 9]].any()


def test_a_bag_that_is_no_depth_of_its_scan_is_named(tmp_path):
    saver = save(tmp_path, scan_frame(), np.zeros((4, 3, 3)))
    with pytest.raises(CohortError, match="scan 'scan': its 4 instances are not the 10 slices of its scan"):
        saver.raise_failures()
