"""A frozen feature extractor: uint8 tiles in, float16 features out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from monai_mil.encoders.card import EncoderCard
from monai_mil.encoders.preprocess import prepare
from monai_mil.errors import EncoderError

_FLOAT16_MAX = 65504.0

_Part = tuple[Tensor, Tensor]


class Encoder:
    """Maps tiles to features; made by :func:`monai_mil.encoders.get_encoder`.

    Attributes:
        name: the card's name.
        digest: 16 hexadecimal digits over weights and preprocessing; bags of one digest belong together. The number
            type the network runs in is not part of it.
        width: ``d``, the length of a feature vector.
        grid: ``(h, w)`` of the spatial map, None when features are pooled.
        tile_size: side of the tiles it was made for, px at ``target_mpp``; other sizes are resized.
        target_mpp: micrometres per pixel it was made for.
    """

    def __init__(
        self,
        card: EncoderCard,
        model: nn.Module,
        *,
        digest: str,
        spatial: bool,
        device: torch.device,
        dtype: torch.dtype,
        chunk: int,
        side_by_side: bool,
    ) -> None:
        self.card = card
        self.name = card.name
        self.digest = digest
        self.width = card.token_width if spatial else card.width
        self.grid = card.grid if spatial else None
        self.tile_size = card.tile_size
        self.target_mpp = card.target_mpp
        self.device = device
        self.dtype = dtype
        self._model = model
        self._chunk = chunk
        self._side_by_side = side_by_side

    def __call__(self, tiles: Tensor) -> Tensor:
        """Encode tiles.

        Args:
            tiles: uint8 RGB ``[b, 3, s, s]``, any ``s``, on any device.

        Returns:
            float16 ``[b, d]``, or spatial ``[b, d, h, w]`` whose memory is token-major (``permute(0, 2, 3, 1)`` of it
            is contiguous), on the encoder's device. Values outside float16's range are clamped to it.

        Raises:
            EncoderError: the input is not a batch of square RGB uint8 tiles, or the network's output is not what the
                card says.
        """
        _check_tiles(tiles, self.card)
        return self._run(tiles, raw=True)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images that are prepared already, floats as the network wants them.

        Args:
            images: ``[b, card.channels, input_size, input_size]``, such as ``scans.prepare_slices`` makes.

        Returns:
            What ``__call__`` returns.

        Raises:
            EncoderError: the encoder is for tiles only, or the images have another type or shape.
        """
        _check_images(images, self.card)
        return self._run(images, raw=False)

    def _run(self, inputs: Tensor, *, raw: bool) -> Tensor:
        features = torch.empty(len(inputs), *(self.grid or ()), self.width, dtype=torch.float16, device=self.device)
        parts = list(zip(inputs.split(self._chunk), features.split(self._chunk), strict=True))
        if self._side_by_side:
            _each_on_its_own_thread(lambda part: self._fill(*part, raw=raw), parts)
        else:
            for part in parts:
                self._fill(*part, raw=raw)
        return features.permute(0, 3, 1, 2) if self.grid else features

    @torch.inference_mode()
    def _fill(self, inputs: Tensor, features: Tensor, *, raw: bool) -> None:
        inputs = inputs.to(self.device, non_blocking=True)
        images = prepare(inputs, self.card.preprocessing, self.dtype) if raw else inputs.to(self.dtype)
        output = self._model(images)
        if output.shape != features.shape:
            raise EncoderError(
                f"encoder '{self.name}': the network gives {list(output.shape[1:])} for a tile, "
                f"its card says {list(features.shape[1:])}; correct the card or the weights"
            )
        features.copy_(output.clamp(-_FLOAT16_MAX, _FLOAT16_MAX))

    def __repr__(self) -> str:
        grid = f", grid={self.grid}" if self.grid else ""
        return f"Encoder({self.name!r}, width={self.width}{grid}, digest={self.digest!r}, device={str(self.device)!r})"


def _each_on_its_own_thread(call: Callable[[_Part], None], parts: list[_Part]) -> None:
    """Run small operators single-threaded, parts side by side: waiting for one another would cost more than they do."""
    threads = min(torch.get_num_threads(), len(parts))
    if threads <= 1:
        for part in parts:
            call(part)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(call, parts))
    finally:
        torch.set_num_threads(torch.get_num_threads())  # workers changed what threads of the future start with


def _check_tiles(tiles: Tensor, card: EncoderCard) -> None:
    name = card.name
    if "tiles" not in card.reads:
        raise EncoderError(
            f"encoder '{name}': it is made for CT slices, not for tiles; pass slices to encode() as prepare_slices "
            "makes them, or choose an encoder of tiles such as 'texture'"
        )
    if not isinstance(tiles, Tensor) or tiles.dtype != torch.uint8:
        kind = tiles.dtype if isinstance(tiles, Tensor) else type(tiles).__name__
        raise EncoderError(f"encoder '{name}': tiles must be a uint8 tensor, got {kind}; pass RGB values 0 to 255")
    if tiles.ndim != 4 or tiles.shape[1] != 3 or tiles.shape[2] != tiles.shape[3] or tiles.shape[2] == 0:
        raise EncoderError(
            f"encoder '{name}': tiles must have shape [b, 3, s, s], got {list(tiles.shape)}; "
            "put RGB on the second axis and cut square tiles"
        )


def _check_images(images: Tensor, card: EncoderCard) -> None:
    if "slices" not in card.reads:
        raise EncoderError(
            f"encoder '{card.name}': it is made for RGB tiles, not for prepared images; "
            "choose one that reads CT slices such as 'ct_texture'"
        )
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise EncoderError(f"encoder '{card.name}': prepared images must be a float tensor, got {kind}")
    side = card.preprocessing.input_size
    if images.ndim != 4 or images.shape[1] != card.channels or images.shape[2:] != (side, side):
        preset = "chest_paper" if card.channels == 1 else "chest_rsna"
        raise EncoderError(
            f"encoder '{card.name}': prepared images must have shape [b, {card.channels}, {side}, {side}], got "
            f"{list(images.shape)}; prepare slices at size {side} with a preset of {card.channels} channel(s), "
            f"such as '{preset}'"
        )
