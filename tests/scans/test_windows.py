import json

import numpy as np
import pytest

from monai_mil.errors import SettingsError
from monai_mil.scans import SlicePreset, Window, prepare_slices, slice_preset


def test_a_window_maps_its_edges_to_black_and_white():
    window = Window(40, 400)
    assert (window.low, window.high) == (-160, 240)
    grey = window.apply(np.array([-3024, -160, -60, 40, 240, 3000], np.int16))
    assert grey.dtype == np.float32
    np.testing.assert_allclose(grey, [0, 0, 0.25, 0.5, 1, 1], atol=1e-6)


def test_a_window_leaves_the_scan_as_it_was():
    hu = np.array([-100.0, 500.0], np.float32)
    Window(0, 10).apply(hu)
    assert hu.tolist() == [-100, 500]


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("head_rsna", [(40, 80), (80, 200), (600, 2800)]),
        ("chest_rsna", [(-600, 1500), (100, 700), (40, 400)]),
        ("abdomen_rsna", [(50, 400)] * 3),
        ("lung", [(-600, 1500)] * 3),
        ("-600/1500", [(-600, 1500)] * 3),
        ("40.5/80", [(40.5, 80)] * 3),
    ],
)
def test_presets_have_the_windows_of_the_field(name, windows):
    preset = slice_preset(name)
    assert [(window.center, window.width) for window in preset.windows] == windows
    assert preset.name == name
    assert preset.channels == 3
    assert preset.mean == (0.485, 0.456, 0.406)


def test_insight_s_preset_is_grey_from_0_to_1_without_statistics():
    hu = np.array([[[-1024, -1000], [-300, 400]], [[3071, 0], [50, -650]]], np.int16)
    seen = prepare_slices(hu, slice_preset("insight"), 2)
    expected = (hu.clip(-1000, 400) + 1000) / 1400
    np.testing.assert_allclose(seen, np.repeat(expected[:, None], 3, axis=1), atol=1e-6)


@pytest.mark.parametrize("region", ["head", "chest", "abdomen"])
def test_the_paper_s_presets_wait_for_statistics(region):
    preset = slice_preset(f"{region}_paper")
    assert preset.channels == 1
    assert preset.mean is None
    assert preset.clip == ((-100, 300) if region == "head" else (-1024, 3071))


def test_a_preset_survives_json():
    for name in ("head_paper", "chest_rsna", "40/400"):
        preset = slice_preset(name)
        assert SlicePreset.from_record(json.loads(json.dumps(preset.record()))) == preset


@pytest.mark.parametrize("record", [{}, {"name": "x", "windows": [[1]], "clip": [0, 1], "mean": None, "std": None}])
def test_what_is_no_record_is_refused(record):
    with pytest.raises(SettingsError, match="not a preset's record"):
        SlicePreset.from_record(record)


@pytest.mark.parametrize("name", ["", "chest", "40", "a/b", "40/400/3"])
def test_unknown_presets_are_answered_with_the_known_ones(name):
    with pytest.raises(SettingsError, match=r"unknown; use one of head_paper, .*'center/width'"):
        slice_preset(name)


@pytest.mark.parametrize("name", ["40/0", "40/-400"])
def test_windows_without_width_are_refused(name):
    with pytest.raises(SettingsError, match="width must be above 0"):
        slice_preset(name)
