import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from monai_mil.encoders.backbones import import_timm
from monai_mil.errors import EncoderError


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return import_timm("tests")
        except EncoderError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def resnet18_file(timm: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a whole ResNet-18, classifier included, as a model hub keeps them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), path)
    return path


def random_tiles(count: int, side: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    noise = torch.rand(count, 3, side, side, generator=generator)
    return ((0.8 * smooth + 0.2 * noise) * 255).to(torch.uint8)
