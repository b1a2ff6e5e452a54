import numpy as np
import pytest
import torch

from monai_mil.errors import SettingsError
from monai_mil.scans import Depth


@pytest.mark.parametrize("n", [1, 7, 32, 33, 55, 300])
def test_layers_are_those_of_torch_s_trilinear_resize(n):
    hu = np.random.default_rng(n).normal(size=(n, 3, 4))
    expected = torch.nn.functional.interpolate(torch.from_numpy(hu)[None, None], size=(32, 3, 4), mode="trilinear")
    np.testing.assert_allclose(Depth(32).at_places(hu), expected[0, 0].numpy(), atol=1e-12)


@pytest.mark.parametrize("n", [32, 55, 300])
def test_what_varies_smoothly_comes_back_from_the_layers(n):
    depth = Depth(32)
    slices = np.stack([np.sin(np.arange(n) / n * 5), np.linspace(-1, 1, n)], axis=1)
    back = depth.restore(depth.at_places(slices), n)
    assert back.shape == slices.shape
    edge = n // 32
    np.testing.assert_allclose(back[edge : n - edge], slices[edge : n - edge], atol=0.01)


@pytest.mark.parametrize("n", [5, 20, 31, 32, 40, 300])
@pytest.mark.parametrize("layer", [3, 16, 28])
def test_a_layer_comes_back_where_its_slices_lie(n, layer):
    restored = Depth(32).restore(np.eye(32)[layer], n)
    centre = (restored * np.arange(n)).sum() / restored.sum()
    assert abs(centre - Depth(32).places(n)[layer]) <= max(0.5, 0.1 * n / 32)
    assert restored.max() > 0, "no layer is lost, however few the slices"


def test_the_middle_of_a_long_scan_is_kept_and_all_of_a_short_one():
    depth = Depth(32, "middle")
    assert depth.indices(55).tolist() == list(range(11, 43))
    assert depth.indices(9).tolist() == list(range(9))
    assert (depth.count(55), depth.count(9)) == (32, 9)
    positions = np.linspace(-700, -300, 55)
    np.testing.assert_array_equal(depth.at_places(positions), positions[11:43])


def test_what_the_middle_left_out_has_the_lowest_score():
    scores = np.arange(1.0, 5.0)
    assert Depth(4, "middle").restore(scores, 7).tolist() == [0, 1, 2, 3, 4, 0, 0]
    assert Depth(4, "middle").restore(scores - 3, 7).tolist() == [-2, -2, -1, 0, 1, -2, -2]


@pytest.mark.parametrize("mode", ["resize", "middle"])
def test_labels_go_to_layers_and_back(mode):
    depth, slices = Depth(8, mode), np.zeros(24, int)
    slices[12:15] = 1
    layers = depth.layer_labels(slices)
    assert layers.tolist() == [0, 0, 0, 0, 1, 0, 0, 0] if mode == "resize" else [0, 0, 0, 0, 1, 1, 1, 0]
    back = depth.restore_labels(layers, 24)
    assert back.tolist() == slices.tolist() if mode == "resize" else (back[8:16] == slices[8:16]).all()
    assert mode == "resize" or (back[:8] == -1).all(), "nothing is known of what was left out"


def test_a_layer_of_known_and_unknown_slices_is_unknown_unless_one_is_positive():
    assert Depth(2).layer_labels(np.array([0, -1, 0, -1, 1, 0])).tolist() == [-1, 1]
    assert Depth(4).layer_labels(np.array([0, 1])).tolist() == [0, 0, 1, 1], "more layers than slices"


def test_a_depth_survives_json():
    assert Depth.from_json(Depth(32, "middle").to_json()) == Depth(32, "middle")


@pytest.mark.parametrize(
    ("given", "message"), [((0,), "depth 0: must be at least 1"), ((3, "crop"), "'crop': is none of resize, middle")]
)
def test_what_is_no_depth_is_refused(given, message):
    with pytest.raises(SettingsError, match=message):
        Depth(*given)
