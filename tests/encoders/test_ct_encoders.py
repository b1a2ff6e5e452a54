"""What encoders take and refuse, and the vision transformer on one channel."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from monai_mil.encoders import get_encoder
from monai_mil.encoders.cards import CARDS
from monai_mil.errors import EncoderError
from tests.encoders.conftest import random_tiles

_URL = "https://download.pytorch.org/models/vit_b_16-c867db91.pth"


@pytest.fixture(scope="module")
def torchvision_vit(timm) -> torch.nn.Module:
    """Torchvision's own network with random weights: an implementation that knows nothing of timm."""
    from torchvision.models import vit_b_16

    torch.manual_seed(0)
    network = vit_b_16(weights=None).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1 or parameter.shape[0] == 1:
            torch.nn.init.normal_(parameter, std=0.1)  # biases, norms, class token and positions start as constants
    return network


@pytest.fixture(scope="module")
def vit_file(torchvision_vit, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "vit_b_16-c867db91.pth"
    torch.save(torchvision_vit.state_dict(), path)
    return path


def test_vit_b16_ct_is_torchvision_s_network_on_a_grey_image(torchvision_vit, vit_file):
    """Summed patch weights on one channel are the same as the channel three times."""
    slices = torch.randn(2, 1, 224, 224)
    encoder = get_encoder("vit_b16_ct", weights=vit_file)
    torchvision_vit.heads = torch.nn.Identity()
    with torch.inference_mode():
        expected = torchvision_vit(slices.expand(-1, 3, -1, -1))
    features = encoder.encode(slices)
    assert features.shape == (2, 768)
    torch.testing.assert_close(features.float(), expected, atol=2e-3, rtol=2e-3)


def test_weights_already_summed_to_one_channel_are_taken(timm, vit_file, tmp_path):
    state = torch.load(vit_file, weights_only=True)
    state["conv_proj.weight"] = state["conv_proj.weight"].sum(1, keepdim=True)
    save_file(state, tmp_path / "summed.safetensors")
    whole, summed = (get_encoder("vit_b16_ct", weights=path) for path in (vit_file, tmp_path / "summed.safetensors"))
    assert whole.digest == summed.digest


def test_vit_b16_ct_gives_token_maps_too(timm, vit_file):
    encoder = get_encoder("vit_b16_ct", weights=vit_file, spatial=True)
    assert encoder.encode(torch.randn(1, 1, 224, 224)).shape == (1, 768, 14, 14)


def test_offline_the_error_names_the_file_to_fetch(timm, monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(EncoderError, match=f"downloaded from {_URL}.*fetch vit_b_16-c867db91.pth .*weights=FILE"):
        get_encoder("vit_b16_ct")


def test_a_download_that_is_not_what_its_name_promises_is_refused(timm, monkeypatch, tmp_path):
    (tmp_path / "served-c867db91.pth").write_bytes(b"something else")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    card = replace(CARDS["vit_b16_ct"], url=(tmp_path / "served-c867db91.pth").as_uri())
    with pytest.raises(EncoderError, match="invalid hash"):
        get_encoder(card)
    assert not list(tmp_path.glob("home/**/*.pth"))


@pytest.mark.parametrize("name", ["ct_texture"])
def test_tiles_are_refused_by_encoders_of_slices(name):
    with pytest.raises(EncoderError, match="made for CT slices, not for tiles"):
        get_encoder(name)(random_tiles(1, 224))


def test_slices_are_refused_by_encoders_of_tiles():
    with pytest.raises(EncoderError, match="made for RGB tiles, not for prepared images"):
        get_encoder("texture").encode(torch.zeros(1, 3, 224, 224))


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(1, 1, 224, 224), r"shape \[b, 3, 224, 224\], got \[1, 1, 224, 224\].*'chest_rsna'"),
        (torch.zeros(1, 3, 256, 256), r"got \[1, 3, 256, 256\]; prepare slices at size 224"),
        (torch.zeros(3, 224, 224), r"got \[3, 224, 224\]"),
        (torch.zeros(1, 3, 224, 224, dtype=torch.int16), "float tensor, got torch.int16"),
    ],
)
def test_slices_of_another_shape_are_refused(images, words):
    with pytest.raises(EncoderError, match=words):
        get_encoder("ct_texture").encode(images)


def test_three_channels_are_refused_by_an_encoder_of_one(timm, vit_file):
    with pytest.raises(EncoderError, match=r"shape \[b, 1, 224, 224\].*'chest_paper'"):
        get_encoder("vit_b16_ct", weights=vit_file).encode(torch.zeros(1, 3, 224, 224))


def test_cards_with_three_channels_keep_their_digests():
    """Bags that exist keep belonging to their encoder."""
    assert get_encoder("texture").digest == "2252cf35bb0521d9"
