import numpy as np
import pytest
import torch

from monai_mil.encoders import get_encoder
from monai_mil.errors import EncoderError
from monai_mil.scans import prepare_slices, slice_preset


def chest(count: int = 1, seed: int = 0) -> torch.Tensor:
    """Slices with two lungs in HU, int16 noise included, prepared."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-112:112, -112:112]
    hu = np.where(np.hypot(x / 108, y / 92) < 1, 40, -1000)
    hu = np.where(np.hypot((np.abs(x) - 50) / 28, y / 50) < 1, -850, hu)
    slices = hu + rng.normal(0, 15, (count, 224, 224))
    return prepare_slices(slices.astype(np.int16), slice_preset("chest_rsna"), 224)


def with_disc(diameter: float, column: int, row: int) -> torch.Tensor:
    y, x = np.mgrid[:224, :224]
    disc = torch.from_numpy(np.hypot(x - column, y - row) < diameter / 2)
    slices = chest()
    white = prepare_slices(np.full((1, 224, 224), 40, np.int16), slice_preset("chest_rsna"), 224)
    return torch.where(disc, white, slices)


@pytest.mark.parametrize(("spatial", "shape"), [(False, (3, 112)), (True, (3, 42, 14, 14))])
def test_shapes_are_those_of_the_card(spatial, shape):
    encoder = get_encoder("ct_texture", spatial=spatial)
    features = encoder.encode(chest(3))
    assert features.shape == shape
    assert features.dtype == torch.float16
    assert encoder.width == shape[1]


def test_the_numbers_of_this_version_never_change():
    encoder = get_encoder("ct_texture")
    assert encoder.digest == "8351e87c9d9514cd"
    hu = ((np.arange(224)[:, None] * np.arange(224)) % 97 * 12 - 900).astype(np.int16)[None]
    features = encoder.encode(prepare_slices(hu, slice_preset("chest_rsna"), 224))[0, ::12].float()
    torch.testing.assert_close(
        features,
        torch.tensor([6.379, 1.328, -5.094, -1.668, -8.000, -8.000, 0.326, -0.184, -0.864, -0.864]),
        atol=1e-2,
        rtol=2e-3,
    )


def test_a_slice_s_features_do_not_depend_on_its_chunk():
    encoder, slices = get_encoder("ct_texture"), chest(9)
    alone = torch.cat([encoder.encode(one[None]) for one in slices])
    assert torch.equal(encoder.encode(slices), alone)


@pytest.mark.parametrize(("diameter", "width"), [(5, 0), (10, 1), (14, 3)])
def test_a_nodule_lights_up_its_token_at_its_width(diameter, width):
    """Discs of 8, 16 and 22 mm at 1.6 mm a pixel, in the middle of a lung."""
    encoder = get_encoder("ct_texture", spatial=True)
    bodies, without = (encoder.encode(slices)[0, -12:-6].float() for slices in (with_disc(diameter, 168, 120), chest()))
    change = bodies - without
    assert change[width].argmax() == 7 * 14 + 10
    assert change[width].max() > 3
    assert without[width, 6:9, 9:12].max() < 0.5


def test_a_vessel_is_no_body():
    encoder = get_encoder("ct_texture", spatial=True)
    slices = chest()
    slices[:, :, 80:144, 160:162] = slices[:, :, 112:113, 112:113]
    bodies = encoder.encode(slices)[0, -12:-6].float()
    assert bodies[1:, 5:9, 9:12].max() < 1


@pytest.mark.parametrize("place", [(60, 100), (165, 130)])
def test_a_small_nodule_changes_the_pooled_vector_where_it_lies(place):
    encoder = get_encoder("ct_texture")
    change = (encoder.encode(with_disc(11, *place)) - encoder.encode(chest()))[0].float()
    places = change[96:].view(4, 4)
    assert places.argmax() == place[1] // 56 * 4 + place[0] // 56
    assert change[84:90].max() > 1


@pytest.mark.parametrize("hu", [-1024, 0, 3071])
def test_blank_slices_give_finite_bounded_features(hu):
    slices = prepare_slices(np.full((1, 32, 32), hu, np.int16), slice_preset("chest_rsna"), 224)
    for spatial in (False, True):
        features = get_encoder("ct_texture", spatial=spatial).encode(slices)
        assert torch.isfinite(features).all()
        assert features.abs().max() <= 8


def test_weights_are_refused(tmp_path):
    with pytest.raises(EncoderError, match="'ct_texture': it has no weights"):
        get_encoder("ct_texture", weights=tmp_path / "w.safetensors")
