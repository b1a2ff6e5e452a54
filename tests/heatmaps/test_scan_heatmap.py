import numpy as np
import pytest
import torch

from monai_mil.errors import BagError
from monai_mil.heatmaps import Heatmap, ScanHeatmap, load_heatmap
from monai_mil.scans import LungField, SlicePreset, prepare_slices
from tests.heatmaps.examples import grid_heatmap, scan_frame, scan_heatmap

LABELS = [0, 0, 1, 1, 0, 0, 0, 0, -1, -1]


@pytest.mark.parametrize("block", [(), (3, 4)])
def test_what_is_saved_is_loaded(tmp_path, block):
    scores = np.random.default_rng(0).normal(size=(10, *block))
    heatmap = scan_heatmap(heads=2, scores=scores, labels=LABELS, threshold=0.25, attributes={"prediction": "a"})
    back = ScanHeatmap.load(heatmap.save(tmp_path / "a.h5"))
    for part in ("scores", "attention", "labels"):
        np.testing.assert_array_equal(getattr(back, part), getattr(heatmap, part))
        assert getattr(back, part).dtype == getattr(heatmap, part).dtype
    assert back.frame.to_json() == heatmap.frame.to_json()
    assert (back.name, back.threshold, back.attributes) == ("attention", 0.25, {"prediction": "a"})


def test_what_is_not_known_stays_unknown(tmp_path):
    back = ScanHeatmap.load(ScanHeatmap(scan_frame(), np.arange(10)).save(tmp_path / "a.h5"))
    assert (back.attention, back.labels, back.threshold, back.attributes) == (None, None, None, {})


def test_a_frame_longer_than_an_hdf5_attribute_is_kept(tmp_path):
    frame = scan_frame(np.arange(1700) * 0.6, sop_uids=("1.2.840.113619.2.55.3.604688119.971.1584321012.467.1",) * 1700)
    assert len(frame.to_json()) > 2**16
    back = ScanHeatmap.load(scan_heatmap(frame).save(tmp_path / "a.h5"))
    np.testing.assert_array_equal(back.frame.positions_mm, frame.positions_mm)


def test_tensors_of_half_precision_are_taken():
    heatmap = ScanHeatmap(scan_frame(), torch.arange(10).bfloat16(), attention=torch.full((10,), 0.1).half())
    assert (heatmap.scores.dtype, heatmap.attention.shape) == (np.float32, (1, 10))
    assert heatmap.peak == 9


def test_files_of_slides_and_of_scans_are_told_apart(tmp_path):
    assert isinstance(load_heatmap(scan_heatmap().save(tmp_path / "scan.h5")), ScanHeatmap)
    assert isinstance(load_heatmap(grid_heatmap().save(tmp_path / "slide.h5")), Heatmap)
    (tmp_path / "a.h5").write_bytes(b"nothing")
    for load in (load_heatmap, ScanHeatmap.load):
        with pytest.raises(BagError, match=r"a\.h5': cannot be read"):
            load(tmp_path / "a.h5")
    with pytest.raises(BagError, match=r"slide\.h5': not a scan's heatmap"):
        ScanHeatmap.load(tmp_path / "slide.h5")


@pytest.mark.parametrize("size", [(5, 8), (8, 5), (6, 6), (7, 4)])
def test_cells_lie_where_prepare_slices_puts_the_pixels(size):
    frame = scan_frame(size=size)
    hu = np.random.default_rng(0).integers(0, 1000, (10, *size)).astype(np.float32)
    seen = prepare_slices(hu, SlicePreset("plain", mean=(0.0,), std=(1.0,)), max(size))[:, 0]
    heatmap = ScanHeatmap(frame, seen)
    for index in range(10):
        np.testing.assert_array_equal(heatmap.slice_map(index), hu[index])


def test_cells_of_another_number_than_pixels_cover_the_slice_evenly():
    heatmap = ScanHeatmap(scan_frame(size=(4, 8)), np.arange(10 * 4).reshape(10, 4, 1))
    assert heatmap.slice_map(0)[:, 0].tolist() == [1, 1, 2, 2], "rows 2 to 5 of 8, two rows a cell"
    assert heatmap.slice_scores.tolist() == np.arange(3, 40, 4).tolist()


def test_foreground_is_above_the_threshold_and_needs_one():
    scores = np.arange(10.0).repeat(4).reshape(10, 2, 2)
    lungs = np.zeros((10, 24, 32), bool)
    lungs[:, :12] = True
    heatmap = scan_heatmap(scores=scores, threshold=4.0, lungs=LungField.pack(lungs, "threshold"))
    np.testing.assert_array_equal(heatmap.foreground(5), lungs[5])
    assert not heatmap.foreground(4).any()
    with pytest.raises(ValueError, match="heatmap of 'scan': no foreground without a threshold"):
        scan_heatmap().foreground(5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros(9)}, r"scores have shape \[9\]; expected \[n\] or \[n, h, w\] for 10 slices"),
        ({"scores": np.zeros((10, 2))}, r"scores have shape \[10, 2\]"),
        ({"scores": np.r_[np.zeros(6), np.nan, np.zeros(3)]}, "the score of slice 7 of 10 is not finite"),
        ({"attention": np.ones((2, 9))}, r"attention has shape \[2, 9\]; expected \[h, 10\]"),
        ({"attention": -np.ones(10)}, "attention is negative"),
        ({"attention": np.zeros(10)}, "all 0"),
        ({"labels": np.zeros(9)}, r"labels have shape \[9\]; expected \[10\]"),
        ({"threshold": np.nan}, "the threshold is not a number"),
        (
            {"lungs": LungField.pack(np.ones((10, 24, 31), bool), "threshold")},
            r"lungs of shape \(10, 24, 31\); expected \(10, 24, 32\)",
        ),
    ],
)
def test_what_does_not_fit_the_scan_is_refused(changes, message):
    with pytest.raises(ValueError, match=rf"heatmap of 'scan': .*{message}"):
        scan_heatmap(**changes)
