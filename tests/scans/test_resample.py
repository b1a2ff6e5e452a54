import numpy as np
import pytest

from monai_mil.errors import ScanReadError, SettingsError
from monai_mil.scans import Scan, ScanFrame, resample

pytest.importorskip("itk", reason="the extra 'itk' is not installed")

_CENTRE = np.array([12.0, -20.0, 35.0])
_RADIUS = 9.0


def sphere_scan(heights: np.ndarray, tilt: float = 0.0, spacing: tuple[float, float] = (0.9, 0.6)) -> Scan:
    """A soft sphere of 0 HU in -1000, sampled where each voxel lies; oblique rows, sheared by ``tilt`` degrees."""
    turn = np.deg2rad(20)
    orientation = np.array([[np.cos(turn), np.sin(turn), 0], [-np.sin(turn), np.cos(turn), 0]])
    rows, columns = 70, 90
    middle = orientation.T @ (np.array([columns * spacing[1], rows * spacing[0]]) / 2)
    shift = np.tan(np.deg2rad(tilt)) * (heights - _CENTRE[2])
    origins = (_CENTRE * (1, 1, 0) - middle) + np.outer(heights, [0, 0, 1]) + np.outer(shift, orientation[1])
    n = len(heights)
    frame = ScanFrame("ball", None, (rows, columns), spacing, orientation, origins, ("1.2.3",) * n, (1,) * n)
    return Scan(frame, density(frame), "someone")


def places(frame: ScanFrame) -> np.ndarray:
    """LPS of every voxel, ``[n, rows, columns, 3]``."""
    y, x = np.mgrid[: frame.size[0], : frame.size[1]]
    plane = (
        x[..., None] * frame.spacing[1] * frame.orientation[0] + y[..., None] * frame.spacing[0] * frame.orientation[1]
    )
    return frame.origins[:, None, None] + plane


def density(frame: ScanFrame) -> np.ndarray:
    depth = _RADIUS - np.linalg.norm(places(frame) - _CENTRE, axis=-1)
    return (-1000 + 1000 * np.clip(depth / 4 + 0.5, 0, 1)).astype(np.float32)


@pytest.mark.parametrize("tilt", [0, 18.5])
@pytest.mark.parametrize("target", [1.5, (2.5, 1.0, 1.3), (1.0, 0.45, 0.6)])
def test_a_sphere_stays_where_it_is(target, tilt):
    scan = sphere_scan(np.arange(15.0, 56, 2), tilt)
    resampled = resample(scan, target)
    assert resampled.hu.dtype == np.float32
    weight = resampled.hu + 1000
    centre = (places(resampled.frame) * weight[..., None]).sum((0, 1, 2)) / weight.sum()
    np.testing.assert_allclose(centre, _CENTRE, atol=0.1)
    assert np.abs(resampled.hu - density(resampled.frame)).mean() < 8
    assert resampled.frame.tilt_degrees == pytest.approx(tilt, abs=0.01)
    wanted = np.broadcast_to(target, 3)
    np.testing.assert_allclose([resampled.frame.spacings()[0][1], *resampled.frame.spacing], wanted, rtol=1e-3)


def test_uneven_slices_become_even():
    scan = sphere_scan(np.concatenate([np.arange(15.0, 35, 2), np.arange(35.0, 57, 3)]), tilt=10)
    resampled = resample(scan, (2, 1, 1))
    assert resampled.frame.is_regular
    weight = resampled.hu + 1000
    centre = (places(resampled.frame) * weight[..., None]).sum((0, 1, 2)) / weight.sum()
    np.testing.assert_allclose(centre, _CENTRE, atol=0.2)


def test_the_same_spacing_changes_nothing():
    scan = sphere_scan(np.arange(20.0, 50, 2))
    resampled = resample(scan, (2, 0.9, 0.6))
    np.testing.assert_allclose(resampled.hu, scan.hu, atol=0.01)
    np.testing.assert_allclose(resampled.frame.origins, scan.frame.origins, atol=1e-9)


def test_new_slices_claim_no_instance():
    resampled = resample(sphere_scan(np.arange(20.0, 50, 3)), 2)
    assert set(resampled.frame.sop_uids) == {""}
    assert "resampled to 2 x 2 x 2 mm" in resampled.remarks[-1]
    assert resampled.patient_id == "someone"


def test_slices_along_a_curve_are_refused():
    heights = np.array([20.0, 22, 24, 29, 34])
    scan = sphere_scan(heights)
    origins = scan.frame.origins + np.outer(heights**2 / 50, [1, 0, 0])
    frame = ScanFrame(
        "bent", None, scan.frame.size, scan.frame.spacing, scan.frame.orientation, origins, ("",) * 5, (1,) * 5
    )
    with pytest.raises(ScanReadError, match="'bent': its slices do not lie along a straight line"):
        resample(Scan(frame, scan.hu), 2)


@pytest.mark.parametrize("spacing", [0, -1, (1, 1, float("nan"))])
def test_impossible_spacings_are_refused(spacing):
    with pytest.raises(SettingsError, match="mm above 0"):
        resample(sphere_scan(np.arange(20.0, 30, 2)), spacing)
