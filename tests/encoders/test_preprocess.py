import numpy as np
import pytest
import torch
from PIL import Image

from monai_mil.encoders.card import Preprocessing
from monai_mil.encoders.preprocess import prepare
from tests.encoders.conftest import random_tiles

_MEAN = (0.7, 0.5, 0.6)
_STD = (0.2, 0.25, 0.3)


def slow(tile: torch.Tensor, settings: Preprocessing) -> torch.Tensor:
    """What the model cards' own pipelines do: PIL resize, centre crop, scale, normalise."""
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[settings.interpolation]
    side = settings.resize or settings.input_size
    image = Image.fromarray(tile.permute(1, 2, 0).numpy()).resize((side, side), method)
    margin = (side - settings.input_size) // 2
    end = margin + settings.input_size
    pixels = torch.from_numpy(np.array(image)[margin:end, margin:end]).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(settings.mean).view(3, 1, 1)) / torch.tensor(settings.std).view(3, 1, 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "resize"), [(256, None), (224, None), (300, 256), (97, None)])
def test_it_does_what_the_published_pipelines_do(interpolation, side, resize):
    settings = Preprocessing(224, _MEAN, _STD, resize, interpolation)
    tiles = random_tiles(2, side)
    ours = prepare(tiles, settings)
    theirs = torch.stack([slow(tile, settings) for tile in tiles])
    difference = (ours - theirs).abs() * torch.tensor(_STD).view(3, 1, 1) * 255
    assert difference.max() <= 2.01, "grey levels"
    assert difference.mean() <= 0.02


def test_it_is_exact_where_nothing_is_resized():
    settings = Preprocessing(64, _MEAN, _STD)
    tiles = random_tiles(3, 64)
    torch.testing.assert_close(prepare(tiles, settings), torch.stack([slow(tile, settings) for tile in tiles]))


def test_memory_layout_of_the_tiles_does_not_matter():
    settings = Preprocessing(32, _MEAN, _STD)
    wide = random_tiles(2, 64)[:, :, ::2, 10:42]
    assert not wide.is_contiguous()
    expected = prepare(wide.contiguous(), settings)
    assert torch.equal(prepare(wide, settings), expected)
    assert torch.equal(prepare(wide.contiguous(memory_format=torch.channels_last), settings), expected)
    assert expected.is_contiguous(memory_format=torch.channels_last)


def test_pixels_stay_uint8_where_the_card_has_no_mean():
    images = prepare(random_tiles(1, 48), Preprocessing(32, mean=None))
    assert images.dtype == torch.uint8
    assert images.shape == (1, 3, 32, 32)


def test_the_result_has_the_type_asked_for():
    assert prepare(random_tiles(1, 32), Preprocessing(32), torch.bfloat16).dtype == torch.bfloat16
