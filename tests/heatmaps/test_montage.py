import itertools

import numpy as np
import pytest
from PIL import Image

from monai_mil.errors import ScanReadError, SettingsError
from monai_mil.heatmaps import ScanHeatmap, export_montage
from monai_mil.heatmaps.montage import View, display_window, draw_montage, most_suspicious, window_text
from monai_mil.scans import LungField, Scan, Window, load_scan
from tests.conftest import shared
from tests.heatmaps.examples import scan_frame, scan_heatmap, scan_of

GREEN = (0, 158, 115)
SOFT = Window(40, 400)


def axes(*names):
    """Unit vectors in LPS by the side they point to."""
    sides = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
    return np.array([sides[name] for name in names], float)


PLANES = [("LR", "AP"), ("LR", "HF"), ("AP", "HF")]
DIRECTIONS = [pair for plane in PLANES for a, b in itertools.product(*plane) for pair in ((a, b), (b, a))]


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_slices_of_every_orientation_are_shown_as_radiologists_see_them(directions):
    orientation = axes(*directions)
    frame = scan_frame([0.0], size=(40, 60), orientation=orientation, spacing=(2.0, 0.5))
    row, column = np.mgrid[:40, :60]
    place = row[..., None] * 2.0 * orientation[1] + column[..., None] * 0.5 * orientation[0]
    view = View.of(frame, 200)
    left, top = ("A" if set(directions) <= set("APHF") else "R"), ("H" if set(directions) & set("HF") else "A")
    assert (view.letters[0], view.letters[2]) == (left, top)
    towards = axes(left, top)
    across, down = (view.show((place @ side).astype(np.float32)) for side in towards)
    assert (np.diff(across[:, 5:-5], axis=1) < 0).all(), "what is nearest to that side stands at the left"
    assert (np.diff(down[5:-5], axis=0) < 0).all()
    height, width = across.shape
    assert max(height, width) == 200
    assert sorted((height, width)) == [75, 200], "40 rows of 2 mm, 60 columns of 0.5 mm"


def test_an_oblique_slice_goes_by_the_axes_it_is_nearest_to():
    turn = np.radians(30)
    orientation = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0]])
    assert View.of(scan_frame([0.0], orientation=orientation), 100).letters == ("R", "L", "A", "P")


def test_neighbours_do_not_fill_the_montage():
    positions = np.arange(100) * 2.0
    scores = np.exp(-(((positions - 60) / 12) ** 2)) + 0.5 * np.exp(-(((positions - 150) / 12) ** 2))
    chosen = most_suspicious(scores, positions, 4, apart_mm=20.0)
    assert chosen[0] == 30
    assert 75 in chosen
    assert np.diff(np.sort(positions[chosen])).min() >= 20
    assert scores[chosen].tolist() == sorted(scores[chosen], reverse=True)


@pytest.mark.parametrize("n", [1, 3, 8, 9, 12, 40, 300])
@pytest.mark.parametrize("count", [1, 8])
def test_a_montage_has_as_many_slices_as_asked_for_where_there_are_so_many(n, count):
    positions = np.sort(np.random.default_rng(n).random(n)) * n
    for seed in range(20):
        scores = np.random.default_rng(seed).random(n)
        chosen = most_suspicious(scores, positions, count, apart_mm=10.0)
        assert len(set(chosen)) == len(chosen)
        assert chosen[0] == scores.argmax()
        assert 1 <= len(chosen) <= min(n, count)
    even = most_suspicious(np.random.default_rng(0).random(n), np.arange(n) * 5.0, count, apart_mm=10.0)
    assert len(even) == min(n, count)


def test_the_picture_is_the_slice_in_its_window():
    frame = scan_frame(size=(24, 24), spacing=(1.0, 1.0))
    scan = scan_of(frame)
    heatmap = ScanHeatmap(frame, np.eye(10)[3])
    sheet, mm = draw_montage(heatmap, scan, window=SOFT, slices=1, cell=240)
    gap = round(240 * 0.045)
    picture = sheet[gap : gap + 240, gap : gap + 240]
    assert mm == pytest.approx(0.1)
    np.testing.assert_array_equal(picture[50:70, 70:110], 255), "the square of 1000 HU"
    middles = picture[105:240:10, 145:240:10, 0].astype(float)
    expected = 255 * SOFT.apply(scan.hu[3, 10:, 14:])
    assert np.corrcoef(middles.ravel(), expected.ravel())[0, 1] > 0.95


def test_true_slices_are_framed(tmp_path):
    frame = scan_frame()
    labels = np.array([0, 0, 1, 0, 0, 0, 0, 1, -1, -1])
    framed = {}
    for name, given in (("known", labels), ("none", 0 * labels), ("unknown", None)):
        path = export_montage(scan_heatmap(frame, labels=given), scan_of(frame), tmp_path / f"{name}.png", slices=10)
        pixels = np.asarray(Image.open(path).convert("RGB"))
        framed[name] = int((pixels == GREEN).all(axis=2).sum())
    assert framed["known"] > 2 * 1000
    assert framed["none"] == framed["unknown"] == 0


def test_cells_are_laid_smoothly_over_the_slice_with_a_contour_at_the_threshold():
    frame = scan_frame(size=(24, 24), spacing=(1.0, 1.0))
    scan = Scan(frame, np.full((10, 24, 24), 40, np.int16))
    scores = np.zeros((10, 4, 4))
    scores[2, 1, 2] = 1.0
    heatmap = ScanHeatmap(frame, scores, threshold=0.5)
    sheet, _ = draw_montage(heatmap, scan, window=SOFT, slices=1, cell=240)
    gap = round(240 * 0.045)
    picture = sheet[gap : gap + 240, gap : gap + 240].astype(int)
    assert np.ptp(picture[90, 150]) > 20, "the cell in the second row and third column is coloured"
    assert (picture[30, 30] == 128).all(), "a score of 0 hides nothing"
    white = (picture[54:127, 114:187] == 255).all(axis=2)
    assert white.any(axis=0)[12:-12].all(), "the contour goes around the cell"
    assert white.any(axis=1)[12:-12].all()
    assert not white[18:-18, 18:-18].any()


@pytest.mark.parametrize(("highest", "threshold", "spread"), [(0.9, 0.5, 60), (0.04, np.inf, 8), (0.9, np.inf, 30)])
def test_a_scan_with_low_scores_or_below_its_operating_point_does_not_look_like_one_with_a_finding(
    highest, threshold, spread
):
    frame = scan_frame(size=(24, 24), spacing=(1.0, 1.0))
    scan = Scan(frame, np.full((10, 24, 24), 40, np.int16))
    scores = np.zeros((10, 4, 4))
    scores[2, 1, 2] = highest
    sheet, _ = draw_montage(ScanHeatmap(frame, scores, threshold=threshold), scan, window=SOFT, slices=1, cell=240)
    gap = round(240 * 0.045)
    coloured = np.ptp(sheet[gap + 90, gap + 150].astype(int))
    assert coloured > spread if threshold == 0.5 else coloured < spread


def test_a_scan_without_foreground_has_no_contour():
    frame = scan_frame(size=(24, 24), spacing=(1.0, 1.0))
    scan = Scan(frame, np.full((10, 24, 24), 40, np.int16))
    heatmap = ScanHeatmap(frame, np.random.default_rng(0).random((10, 4, 4)), threshold=np.inf)
    sheet, _ = draw_montage(heatmap, scan, window=SOFT, slices=1, cell=240)
    gap = round(240 * 0.045)
    inner = sheet[gap + 40 : gap + 200, gap + 40 : gap + 200]
    assert not (inner == 255).all(axis=2).any()
    assert len(np.unique(inner.reshape(-1, 3), axis=0)) > 100, "the map is drawn"


def test_nothing_is_drawn_outside_the_lungs():
    frame = scan_frame(size=(24, 24), spacing=(1.0, 1.0))
    scan = Scan(frame, np.full((10, 24, 24), 40, np.int16))
    inside = np.zeros((10, 24, 24), bool)
    inside[:, :, :12] = True
    heatmap = ScanHeatmap(frame, np.ones((10, 4, 4)), lungs=LungField.pack(inside, "threshold"))
    sheet, _ = draw_montage(heatmap, scan, window=SOFT, slices=1, cell=240)
    gap = round(240 * 0.045)
    picture = sheet[gap : gap + 240, gap : gap + 240].astype(int)
    assert (picture[30:210, 130:220] == 128).all()


def test_the_scan_is_read_from_its_path(tmp_path):
    import nibabel

    frame = scan_frame()
    nibabel.save(nibabel.Nifti1Image(scan_of(frame).hu.T, frame.affine), tmp_path / "scan.nii.gz")
    scan = load_scan(tmp_path / "scan.nii.gz")
    heatmap = scan_heatmap(scan.frame)
    pictures = [
        export_montage(heatmap, source, tmp_path / f"{index}.png").read_bytes()
        for index, source in enumerate((scan, tmp_path / "scan.nii.gz", None))
    ]
    assert pictures[0] == pictures[1] == pictures[2]


def test_another_or_a_lost_scan_is_named(tmp_path):
    heatmap = scan_heatmap()
    other = scan_of(scan_frame(sop_uids=("9",) * 10))
    with pytest.raises(ScanReadError, match="its slices are not those of the heatmap of 'scan'"):
        export_montage(heatmap, other, tmp_path / "a.png")
    without_uids = {"sop_uids": ("",) * 10}
    elsewhere = scan_of(scan_frame(np.arange(10) * 4.0 + 1, **without_uids))
    with pytest.raises(ScanReadError, match="its slices are not those"):
        export_montage(scan_heatmap(scan_frame(**without_uids)), elsewhere, tmp_path / "m.png")
    for source in (None, tmp_path / "gone"):
        with pytest.raises(ScanReadError, match="scan 'scan': its file or folder was not found; give the path"):
            export_montage(heatmap, source, tmp_path / "a.png")


def test_a_window_is_given_by_numbers_or_by_a_preset():
    assert display_window("lung") == Window(-600, 1500)
    assert display_window("-600/1500") == display_window(Window(-600, 1500)) == Window(-600, 1500)
    assert display_window(window_text(Window(37.5, 80))) == Window(37.5, 80)
    with pytest.raises(SettingsError, match="'chest_paper': it has no window to show; give one as 'center/width'"):
        display_window("chest_paper")


def test_a_real_nodule_is_shown_in_its_true_slices(tmp_path):
    import tarfile

    with tarfile.open(shared("data/ct_chest_lidc0314/lidc0314_5mm_dicom.tar.xz")) as tar:
        tar.extractall(tmp_path, filter="data")
    scan = load_scan(tmp_path / "lidc0314_5mm")
    positions = scan.frame.positions_mm
    labels = (positions > -528) & (positions < -512)
    heatmap = ScanHeatmap(scan.frame, np.exp(-(((positions + 520.4) / 8) ** 2)), labels=labels)
    path = export_montage(heatmap, scan, tmp_path / "a.png", window="lung")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.shape[1] > pixels.shape[0] > 800
    sheet, mm = draw_montage(heatmap, scan, window=Window(-600, 1500), slices=1, cell=360)
    row, column = ((131.2 - scan.frame.origins[0, 1]) / mm, (-57.4 - scan.frame.origins[0, 0]) / mm)
    gap = round(360 * 0.045)
    inside = sheet[gap + int(row), gap + int(column), 0]
    beside = sheet[gap + int(row), gap + int(column - 14 / mm), 0]
    assert int(inside) > int(beside) + 60, "tissue in the nodule, air 14 mm to the patient's right"
