"""What is known of an encoder before it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

NumberType = Literal["float32", "bfloat16", "float16"]
"""What an encoder may run in, as it is typed."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How uint8 tiles become what the network was trained on: resize, crop the centre, normalise.

    Examples:
        >>> from monai_mil.encoders import Preprocessing
        >>> Preprocessing(input_size=224).interpolation
        'bilinear'
    """

    input_size: int
    """Side of the square the network sees, px."""
    mean: tuple[float, float, float] | None = IMAGENET_MEAN
    """Of RGB in 0 to 1; None leaves the pixels uint8."""
    std: tuple[float, float, float] = IMAGENET_STD
    resize: int | None = None
    """Side the tile is resized to before the centre crop, px; None is ``input_size``, no crop."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Antialiased."""


@dataclass(frozen=True)
class EncoderCard:
    """An encoder's published facts.

    A variant is a card with another value: ``get_encoder(dataclasses.replace(card, preprocessing=...))``.
    """

    name: str
    architecture: str
    """A timm model name, or one of ``texture``, ``ct_texture``, ``ct_texture_518``, ``ct_pixels``, ``tile_pixels``,
    ``conch_v15``, ``efficientnet_lite0``, ``torchscript``."""
    preprocessing: Preprocessing
    width: int = 0
    """Length of a pooled vector; 0 is found by running the network once."""
    token_width: int = 0
    """Length of the vector at one place of the spatial map; 0 like ``width``."""
    grid: tuple[int, int] = (0, 0)
    """Rows and columns of the spatial map."""
    channels: int = 3
    """Of the images its network sees."""
    reads: tuple[Literal["tiles", "slices"], ...] = ("tiles", "slices")
    """What it is for: uint8 RGB tiles, prepared CT slices, or both."""
    preset: str | None = None
    """The slice preset its numbers are made for; None: any of its channels."""
    tile_size: int = 224
    """Side of the tiles it was made for, px at ``target_mpp``."""
    target_mpp: float = 0.5
    pooling: Literal["head", "class_mean"] = "head"
    """``head`` is the network's own; ``class_mean`` is the class token beside the mean of the patch tokens."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the architecture is built with; ``swiglu`` stands for timm's packed SwiGLU with SiLU."""
    without: tuple[str, ...] = ()
    """Stages of the architecture that are cut off, with their weights."""
    url: str | None = None
    """File of the weights that is in no such repository; its name ends in the first digits of its SHA-256."""
    package: str | None = None
    """Python package with the weights in it, as it is imported; ``files`` are relative to it."""
    repo: str | None = None
    """Hugging Face repository of the weights."""
    files: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
    """Names the weights may have in ``repo`` or ``package``, in order of preference."""
    gated: bool = False
    """The repository asks for a login and for its terms to be accepted."""
    licence: str = ""
    source: str = ""
    """Where the facts on this card are published."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Packages beyond the core that it needs."""
        if self.package is not None:
            return (self.package,)
        built_in = ("texture", "ct_texture", "ct_texture_518", "ct_pixels", "tile_pixels", "torchscript")
        return () if self.architecture in built_in else ("timm", "torchvision")
