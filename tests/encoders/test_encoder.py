import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monai_mil.encoders import Encoder, EncoderCard, Preprocessing, get_encoder
from monai_mil.errors import EncoderError
from tests.encoders.conftest import random_tiles


class Loud(nn.Module):
    """Vectors far outside float16."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) * 1e9


class Strided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 32, stride=32)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


@pytest.fixture
def loud_file(tmp_path):
    torch.jit.script(Loud()).save(str(tmp_path / "loud.ts"))
    return tmp_path / "loud.ts"


@pytest.fixture
def map_file(tmp_path):
    torch.manual_seed(0)
    torch.jit.script(Strided()).save(str(tmp_path / "map.pt"))
    return tmp_path / "map.pt"


@pytest.mark.parametrize(
    ("tiles", "words"),
    [
        (np.zeros((1, 3, 8, 8), np.uint8), "got ndarray"),
        (torch.zeros(1, 3, 8, 8), "got torch.float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"got \[3, 8, 8\]"),
        (torch.zeros(1, 4, 8, 8, dtype=torch.uint8), r"got \[1, 4, 8, 8\]"),
        (torch.zeros(1, 8, 8, 3, dtype=torch.uint8), r"got \[1, 8, 8, 3\]"),
        (torch.zeros(1, 3, 8, 9, dtype=torch.uint8), "cut square tiles"),
        (torch.zeros(1, 3, 0, 0, dtype=torch.uint8), r"got \[1, 3, 0, 0\]"),
    ],
)
def test_what_is_no_batch_of_tiles_is_refused(tiles, words):
    with pytest.raises(EncoderError, match=words):
        get_encoder("texture")(tiles)


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        ("bfloat16", "computes in float32 alone, not in bfloat16"),
        (torch.float16, "float32 alone, not in float16"),
        ("float8", "'float8'; choose from float32, bfloat16, float16"),
        (torch.int8, "does not run in 'int8'"),
    ],
)
def test_a_number_type_that_it_does_not_compute_in_is_refused(dtype, words):
    assert get_encoder("texture", dtype="float32").dtype == torch.float32
    with pytest.raises(EncoderError, match=words):
        get_encoder("texture", dtype=dtype)


def test_tiles_are_left_as_they_were():
    tiles = random_tiles(2, 224)
    before = tiles.clone()
    get_encoder("texture")(tiles)
    assert torch.equal(tiles, before)


def test_a_view_of_a_bigger_image_is_taken():
    image = random_tiles(1, 512)
    view = image[:, :, 17 : 17 + 2 * 224 : 2, 3 : 3 + 224].flip(3)
    encoder = get_encoder("texture")
    assert torch.equal(encoder(view), encoder(view.contiguous()))


def test_features_can_be_trained_on(loud_file):
    features = get_encoder("texture")(random_tiles(2, 224)).float()
    nn.Linear(76, 1)(features).sum().backward()
    assert not features.is_inference()


def test_values_beyond_float16_are_clamped(loud_file):
    features = get_encoder(str(loud_file))(torch.full((1, 3, 224, 224), 255, dtype=torch.uint8))
    assert features.dtype == torch.float16
    assert features.tolist() == [[65504.0] * 3]


def test_a_torchscript_file_is_an_encoder(map_file):
    encoder = get_encoder(str(map_file), spatial=True)
    assert isinstance(encoder, Encoder)
    assert encoder.name == "map"
    assert (encoder.width, encoder.grid) == (6, (7, 7))
    assert encoder(random_tiles(3, 300)).shape == (3, 6, 7, 7)


def test_a_torchscript_file_takes_the_preprocessing_of_a_card(map_file):
    card = EncoderCard("mine", "torchscript", Preprocessing(64, (0, 0, 0), (1, 1, 1)), tile_size=64, target_mpp=1.0)
    encoder = get_encoder(card, weights=map_file, spatial=True)
    assert encoder.grid == (2, 2)
    assert (encoder.tile_size, encoder.target_mpp) == (64, 1.0)
    tiles = random_tiles(1, 64)
    expected = torch.jit.load(map_file)(tiles / 255)
    torch.testing.assert_close(encoder(tiles).float(), expected, atol=1e-3, rtol=1e-3)
    assert encoder.digest != get_encoder(str(map_file), spatial=True).digest


def test_prepared_images_go_straight_to_the_network(map_file):
    encoder = get_encoder(str(map_file), spatial=True)
    images = torch.randn(20, 3, 224, 224)
    expected = torch.jit.load(map_file)(images)
    torch.testing.assert_close(encoder.encode(images).float(), expected, atol=2e-3, rtol=2e-3)


def test_a_program_without_maps_cannot_be_spatial(loud_file, map_file):
    with pytest.raises(EncoderError, match="leave spatial out"):
        get_encoder(str(loud_file), spatial=True)
    with pytest.raises(EncoderError, match="ask for spatial=True"):
        get_encoder(str(map_file))


def test_a_card_that_lies_about_its_width_is_caught(loud_file):
    card = EncoderCard("liar", "torchscript", Preprocessing(32), width=1)
    with pytest.raises(EncoderError, match=r"gives \[3\] for a tile, its card says \[1\]"):
        get_encoder(card, weights=loud_file)(random_tiles(1, 32))


def test_what_is_no_torchscript_file_is_named(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(EncoderError, match=r"weights.pt': not a TorchScript file; .* weights=FILE"):
        get_encoder(str(tmp_path / "weights.pt"))
    with pytest.raises(EncoderError, match=r"none.ts': no such file"):
        get_encoder(str(tmp_path / "none.ts"))
