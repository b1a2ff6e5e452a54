from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from monai_mil.errors import SettingsError
from monai_mil.scans import Scan, ScanFrame, fit_statistics, prepare_slices, slice_preset


def random_hu(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Smooth bodies with sharp edges, air beside bone, in HU."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(-1000, 1500, shape).astype(np.int16)
    hu[:, : shape[1] // 3] = -1000
    return hu


def scan_of(hu: np.ndarray) -> Scan:
    n, rows, columns = hu.shape
    origins = np.stack([np.zeros(n), np.zeros(n), np.arange(n, dtype=float)], axis=1)
    frame = ScanFrame("scan", None, (rows, columns), (1.0, 1.0), np.eye(3)[:2], origins, ("",) * n, (1,) * n)
    return Scan(frame, hu, "")


def slow(hu: np.ndarray, name: str, size: int) -> np.ndarray:
    """Window by window and slice by slice: clip, pad with black, PIL's antialiased triangle filter, normalise."""
    preset = slice_preset(name)
    side = max(hu.shape[1:])
    slices = []
    for image in hu.astype(np.float64):
        channels = []
        for window, mean, std in zip(preset.windows, preset.mean, preset.std, strict=True):
            square = np.zeros((side, side))
            top, left = (side - image.shape[0]) // 2, (side - image.shape[1]) // 2
            grey = np.clip((image - (window.center - window.width / 2)) / window.width, 0, 1)
            square[top : top + image.shape[0], left : left + image.shape[1]] = grey
            small = Image.fromarray(square.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
            channels.append((np.array(small) - mean) / std)
        slices.append(channels)
    return np.array(slices)


@pytest.mark.parametrize("name", ["chest_rsna", "abdomen_rsna", "600/2800"])
@pytest.mark.parametrize("shape", [(2, 96, 96), (2, 61, 90), (2, 90, 60), (1, 20, 20)])
def test_slices_are_windowed_padded_resized_and_normalised(name, shape):
    hu = random_hu(shape)
    np.testing.assert_allclose(prepare_slices(hu, slice_preset(name), 32), slow(hu, name, 32), atol=2e-5)


def test_one_channel_of_hu_is_normalised_by_the_preset_s_own_statistics():
    preset = replace(slice_preset("head_paper"), mean=(20.0,), std=(50.0,))
    hu = np.array([[[-3024, 40], [300, 2000]]], np.int16)
    expected = (np.array([[-100, 40], [300, 300]]) - 20) / 50
    np.testing.assert_allclose(prepare_slices(hu, preset, 2)[0, 0], expected, rtol=1e-6)


def test_chunks_give_what_the_whole_scan_gives():
    preset = slice_preset("chest_rsna")
    hu = random_hu((7, 50, 64))
    whole = prepare_slices(hu, preset, 48)
    assert whole.shape == (7, 3, 48, 48)
    assert whole.dtype == torch.float32
    assert torch.equal(whole, torch.cat([prepare_slices(part, preset, 48) for part in np.array_split(hu, 3)]))


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32, np.float64])
def test_number_types_and_read_only_views_do_not_matter(kind):
    hu = random_hu((2, 40, 40))
    view = np.asarray(hu[::-1], kind)
    view.flags.writeable = False
    expected = prepare_slices(torch.from_numpy(hu[::-1].copy()), slice_preset("lung"), 20)
    assert torch.equal(prepare_slices(view, slice_preset("lung"), 20), expected)


def test_the_scan_is_left_as_it_was():
    hu = random_hu((1, 32, 32)).astype(np.float32)
    for values in (hu, torch.from_numpy(hu)):
        before = hu.copy()
        prepare_slices(values, slice_preset("chest_rsna"), 32)
        np.testing.assert_array_equal(hu, before)


def test_air_beside_tissue_darkens_a_narrow_window_by_its_share_only():
    """Half air, half white: grey. Resizing HU first would average -1000 and 90 and show black."""
    hu = np.full((1, 64, 64), 90, np.int16)
    hu[:, :, ::2] = -1000
    grey = prepare_slices(hu, replace(slice_preset("40/80"), mean=(0.0,) * 3, std=(1.0,) * 3), 16)
    assert grey[0, 0, 4:12, 4:12].mean() == pytest.approx(0.5, abs=0.02)


def test_statistics_are_averaged_over_scans_not_over_slices():
    rng = np.random.default_rng(0)
    scans = [
        scan_of(rng.normal(mean, std, (n, 24, 24)).astype(np.float32))
        for n, mean, std in ((40, -500, 90), (3, 100, 10))
    ]
    fitted = fit_statistics(iter(scans), slice_preset("chest_paper"), size=24)
    assert fitted.mean == pytest.approx((np.mean([scan.hu.mean() for scan in scans]),), rel=1e-5)
    assert fitted.std == pytest.approx((np.mean([scan.hu.std() for scan in scans]),), rel=1e-4)
    assert fitted.name == "chest_paper"


def test_statistics_are_those_of_what_the_network_sees():
    """Padded and resized: half of the square is padding."""
    scans = [scan_of(random_hu((3, 40, 20), seed)) for seed in (0, 1)]
    preset = slice_preset("chest_paper")
    fitted = fit_statistics(scans, preset, size=16)
    unit = replace(preset, mean=(0.0,), std=(1.0,))
    seen = [prepare_slices(scan.hu, unit, 16).double() for scan in scans]
    assert fitted.mean[0] == pytest.approx(np.mean([float(values.mean()) for values in seen]), rel=1e-6)
    assert fitted.std[0] == pytest.approx(np.mean([float(values.std(correction=0)) for values in seen]), rel=1e-6)


def test_padding_outside_the_field_of_view_does_not_move_statistics():
    hu = random_hu((2, 32, 32))
    marked = hu.copy()
    hu[:, :4], marked[:, :4] = -1024, -3024
    preset = slice_preset("chest_paper")
    assert fit_statistics([scan_of(marked)], preset, 32) == fit_statistics([scan_of(hu)], preset, 32)


def test_windowed_presets_can_be_fitted_too():
    fitted = fit_statistics([scan_of(random_hu((2, 32, 32)))], slice_preset("abdomen_rsna"), 32)
    assert len(set(fitted.mean)) == 1
    assert len(fitted.mean) == 3
    assert prepare_slices(random_hu((2, 32, 32)), fitted, 32).mean().abs() < 1e-4


def test_a_preset_without_statistics_says_how_to_get_them():
    with pytest.raises(SettingsError, match="'chest_paper': it has no mean and std yet; get them with fit_statistics"):
        prepare_slices(random_hu((1, 8, 8)), slice_preset("chest_paper"), 8)


def test_scans_without_contrast_are_no_statistics():
    with pytest.raises(SettingsError, match="no scans"):
        fit_statistics([], slice_preset("chest_paper"))
    with pytest.raises(SettingsError, match="same value everywhere"):
        fit_statistics([scan_of(np.full((2, 8, 8), -2000, np.int16))], slice_preset("chest_paper"), 8)
