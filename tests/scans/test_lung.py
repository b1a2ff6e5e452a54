import sys
import tarfile

import numpy as np
import pytest

from monai_mil.errors import ScanReadError, SettingsError
from monai_mil.scans import Scan, ScanFrame, load_scan, lung_mask
from tests.conftest import shared


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (found & truth).sum() / (found.sum() + truth.sum())


def scan_of(hu: np.ndarray, spacing: tuple[float, float, float] = (4.0, 4.0, 4.0)) -> Scan:
    n, rows, columns = hu.shape
    origins = np.stack([np.zeros(n), np.zeros(n), np.arange(n) * spacing[0]], axis=1)
    frame = ScanFrame("scan", None, (rows, columns), spacing[1:], np.eye(3)[:2], origins, ("",) * n, (1,) * n)
    return Scan(frame, hu)


def thorax() -> tuple[np.ndarray, np.ndarray]:
    """HU and lungs, 4 mm voxels: two lungs with a vessel and a nodule, bowel gas, and air under the table."""
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[:30, :80, :90].astype(float)
    hu = np.full(z.shape, -1000.0)
    hu[:, 72:74, 5:85] = 100
    hu[np.hypot((x - 45) / 40, (y - 38) / 28) < 1] = 40
    lungs = np.hypot((np.abs(x - 45) - 20) / 13, (y - 38) / 20) < 1
    lungs &= z > 8
    hu[lungs] = -840
    hu[(np.hypot(x - 25, y - 38) < 1.5) & lungs] = 40
    hu[np.sqrt((x - 65) ** 2 + (y - 45) ** 2 + (z - 18) ** 2) < 1.6] = 50
    hu[np.sqrt((x - 60) ** 2 + (y - 30) ** 2 + ((z - 4) * 1.5) ** 2) < 5] = -990
    return (hu + rng.normal(0, 10, hu.shape)).astype(np.int16), lungs


def test_lungs_are_found_with_their_vessels_and_nodules_and_without_gas():
    hu, lungs = thorax()
    found = lung_mask(scan_of(hu))
    assert found.dtype == bool
    assert dice(found, lungs) > 0.97
    assert found[18, 45, 65], "the nodule"
    assert found[20, 38, 25], "the vessel"
    assert not found[4, 30, 60], "the gas"
    assert not found[:, 76].any(), "air under the table"


def test_a_scan_of_very_many_voxels_is_searched_more_coarsely(monkeypatch):
    hu, lungs = thorax()
    fine = np.repeat(hu, 2, axis=0)
    monkeypatch.setattr("monai_mil.scans.lung._MOST_VOXELS", hu.size)
    found = lung_mask(scan_of(fine, spacing=(2.0, 4.0, 4.0)))
    assert found.shape == fine.shape
    assert dice(found, np.repeat(lungs, 2, axis=0)) > 0.96


def test_what_has_no_lung_has_an_empty_mask():
    hu = thorax()[0][:8]
    assert not lung_mask(scan_of(hu)).any()
    assert not lung_mask(scan_of(np.full((3, 20, 20), -1000, np.int16))).any()


def test_lobes_of_totalsegmentator_are_found():
    """Labels 10 to 14 are the lobes there (the only ones between -727 and -801 HU); the scan shows the lungs' bases."""
    scan = load_scan(shared("data/ct_totalsegmentator/example_ct_sm.nii.gz"))
    labels = load_scan(shared("data/ct_totalsegmentator/example_seg.nii.gz")).hu
    lobes = (labels >= 10) & (labels <= 14)
    assert -760 < scan.hu[lobes].mean() < -730
    found = lung_mask(scan)
    assert dice(found, lobes) > 0.94
    bowel = np.isin(labels, (18, 19, 20)) & (scan.hu < -600)
    assert not found[bowel].any()


def test_the_lungs_of_a_patient_contain_the_nodule(tmp_path):
    with tarfile.open(shared("data/ct_chest_lidc0314/lidc0314_5mm_dicom.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    scan = load_scan(next(path for path in tmp_path.rglob("*") if path.is_dir() and any(path.glob("*.dcm"))))
    found = lung_mask(scan)
    litres = found.sum() * np.prod(scan.frame.spacing) * 5 / 1e6
    assert 2 < litres < 6
    nodule = np.array([-57.44, 131.23, -520.36]) - scan.frame.origins[0]
    column, row = (nodule[:2] / scan.frame.spacing[::-1]).round().astype(int)
    index = int(np.abs(scan.frame.positions_mm + 520.36).argmin())
    assert scan.hu[index, row, column] > -100
    assert found[index, row - 4 : row + 5, column - 4 : column + 5].mean() > 0.9


@pytest.mark.parametrize("archive", ["ct_head_ge_gantrytilt/ge_head_dicom.tar.xz"])
def test_a_head_has_no_lung(tmp_path, archive):
    with tarfile.open(shared(f"data/{archive}")) as file:
        file.extractall(tmp_path, filter="data")
    scan = load_scan(
        next(path for path in tmp_path.rglob("*") if path.is_dir() and any(p.is_file() for p in path.iterdir()))
    )
    assert not lung_mask(scan).any()


def test_unknown_methods_and_missing_packages_say_what_to_do(monkeypatch):
    scan = scan_of(thorax()[0])
    with pytest.raises(SettingsError, match="'network' is none of threshold, lungmask"):
        lung_mask(scan, "network")
    monkeypatch.setitem(sys.modules, "lungmask", None)
    with pytest.raises(ScanReadError, match="pip install lungmask"):
        lung_mask(scan, "lungmask")
    monkeypatch.setitem(sys.modules, "itk", None)
    assert lung_mask(scan).any(), "this method needs no package of its own"


def by_itk(scan: Scan) -> np.ndarray:
    """The same steps by ITK's filters."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    spacing = (float(np.median(np.diff(scan.frame.positions_mm))), *scan.frame.spacing)

    def image(mask):
        made = sitk.GetImageFromArray(mask.astype(np.uint8))
        made.SetSpacing([float(value) for value in spacing[::-1]])
        return made

    def distance(mask):
        return sitk.GetArrayFromImage(
            sitk.SignedMaurerDistanceMap(image(mask), squaredDistance=False, useImageSpacing=True)
        )

    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(image(scan.hu < -320))).astype(int)
    sizes = np.bincount(labels.ravel())
    sizes[np.unique(np.concatenate([labels[:, [0, -1]].ravel(), labels[:, :, [0, -1]].ravel(), [0]]))] = 0
    largest = [label for label in np.argsort(-sizes)[:12] if sizes[label] * np.prod(spacing) >= 15_000]
    mixed = [
        one for one in largest if ((scan.hu[labels == one] > -950) & (scan.hu[labels == one] < -500)).mean() >= 0.5
    ]
    mask = np.isin(labels, [one for one in mixed[:2] if sizes[one] > 0.08 * sizes[mixed[0]]])
    grown = distance(mask) <= 8
    closed = mask | (distance(~grown) > 8)
    return sitk.GetArrayFromImage(sitk.BinaryFillhole(image(closed))) > 0


def test_the_mask_is_the_one_of_itk_s_filters(chest_series):
    small = load_scan(shared("data/ct_totalsegmentator/example_ct_sm.nii.gz"))
    for scan in (scan_of(thorax()[0]), scan_of(thorax()[0], (1.7, 2.9, 3.3)), small, load_scan(chest_series)):
        np.testing.assert_array_equal(lung_mask(scan), by_itk(scan))
