import numpy as np
import pytest
import torch

from monai_mil.embedding import EmbedScand, embed_scan
from monai_mil.encoders import get_encoder
from monai_mil.errors import SettingsError
from monai_mil.scans import Depth, LungField, load_scan, prepare_slices, slice_preset


def lungs(count: int = 1, seed: int = 0) -> np.ndarray:
    """Two lungs in HU with noise, blanked around them, 0.7 mm a pixel."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-256:256, -256:256]
    inside = np.hypot((np.abs(x) - 115) / 75, y / 130) < 1
    return np.where(inside, -850 + rng.normal(0, 20, (count, 512, 512)), -1024).astype(np.int16)


def with_ball(diameter_mm: float, column: int, row: int) -> np.ndarray:
    y, x = np.mgrid[:512, :512]
    return np.where(np.hypot(x - column, y - row) < diameter_mm / 1.4, 40, lungs()).astype(np.int16)


def tokens(hu: np.ndarray) -> torch.Tensor:
    return get_encoder("ct_texture_518", spatial=True).encode(prepare_slices(hu, slice_preset("insight"), 518)).float()


def test_shapes_are_those_of_the_card():
    slices = prepare_slices(lungs(2), slice_preset("insight"), 518)
    for spatial, shape in ((False, (2, 112)), (True, (2, 42, 37, 37))):
        encoder = get_encoder("ct_texture_518", spatial=spatial)
        assert encoder.encode(slices).shape == shape
        assert encoder.width == shape[1]


def test_the_numbers_of_this_version_never_change():
    encoder = get_encoder("ct_texture_518", spatial=True)
    assert encoder.digest == "0d2ea492aa0c59e6"
    hu = ((np.arange(518)[:, None] * np.arange(518)) % 97 * 12 - 900).astype(np.int16)[None]
    features = encoder.encode(prepare_slices(hu, slice_preset("insight"), 518))[0, ::6, 20, 11].float()
    torch.testing.assert_close(
        features, torch.tensor([3.959, 0.220, -0.826, -1.835, -2.752, 0.0, 0.0]), atol=1e-2, rtol=2e-3
    )


def test_tokens_of_the_lungs_are_around_0_with_a_spread_around_1(chest_series):
    scan = load_scan(chest_series)
    field = LungField.find(scan, "threshold")
    encoder = get_encoder("ct_texture_518", spatial=True)
    features = torch.cat(list(embed_scan(scan, encoder, slice_preset("insight"), depth=Depth(6), lungs=field))).float()
    inside = features[:, 3].flatten() > -2.3
    values = features.movedim(1, 0).flatten(1)[:, inside]
    assert 0.05 < inside.float().mean() < 0.2, "outside there is nothing but blank"
    assert values.mean(dim=1).abs().max() < 0.6
    assert 0.4 < values[:30].std(dim=1).min() < values[:30].std(dim=1).max() < 1.4
    assert features.abs().max() <= 8


@pytest.mark.parametrize(("diameter", "width"), [(8, 0), (14, 2), (20, 4)])
@pytest.mark.parametrize(("column", "row"), [(371, 250), (140, 300)])
def test_a_nodule_lights_up_its_token(diameter, width, column, row):
    change = (tokens(with_ball(diameter, column, row)) - tokens(lungs()))[0, -12:-6]
    place = int(change[width].argmax())
    assert change[width].max() > 2
    assert abs(place % 37 - (column + 0.5) * 37 / 512) < 1.5
    assert abs(place // 37 - (row + 0.5) * 37 / 512) < 1.5


@pytest.mark.parametrize("hu", [-1024, 0, 3071])
def test_blank_slices_give_finite_bounded_features(hu):
    features = tokens(np.full((1, 64, 64), hu, np.int16))
    assert torch.isfinite(features).all()
    assert features.abs().max() <= 8


def test_slices_of_another_preset_are_refused():
    with pytest.raises(SettingsError, match="'ct_texture_518' is made for preset 'insight', not for 'chest_rsna'"):
        EmbedScand(encoder="ct_texture_518", preset="chest_rsna")
