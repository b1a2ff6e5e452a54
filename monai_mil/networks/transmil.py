"""TransMIL (Shao et al., NeurIPS 2021)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import BagByBagNetwork, NystromAttention, TokenSequence
from monai_mil.networks.contract import MILNetwork, exact_matmul
from monai_mil.networks.graph import is_recorded
from monai_mil.networks.reference import check_tensors, load_reference, size_of

LONG_BAG = {"cpu": 100_000, "cuda": 2_000_000}
"""Tiles from which on evaluation keeps no tokens: so many take 0.8 GB of main memory, or 16 GB of a GPU's."""

STEP_TOKENS = 8192
"""Tokens of a block of them."""

REFERENCE_NAMES = {
    r"_fc1\.0\.": "hidden.",
    r"_fc2\.": "classifier.",
    r"cls_token": "token",
    r"(layer\d)\.norm\.": r"norm_\1.",
    r"(layer\d)\.attn\.to_qkv\.": r"\1.project.",
    r"(layer\d)\.attn\.to_out\.0\.": r"\1.output.",
    r"(layer\d)\.attn\.res_conv\.": r"\1.mix.",
    r"pos_layer\.proj\.": "positions.seven.",
    r"pos_layer\.proj1\.": "positions.five.",
    r"pos_layer\.proj2\.": "positions.three.",
}


class TransMIL(BagByBagNetwork):
    """A transformer over the tiles of a slide, laid out as a square in the order of the bag.

    ``h_i = relu(W x_i + b)``; the first tiles are repeated until there are ``s^2``; a class token comes first; then
    ``x + Nystroem(LN(x))``, depthwise positions on the square, ``x + Nystroem(LN(x))``, ``LN`` of the token, and
    ``logits = C z + c``. The order of the tiles matters.

    The output holds ``logits``, ``bag`` ``[b, hidden_dim]`` and the class token's attention to the tiles in the last
    layer: ``attention_logits``, its exact scores (Nystroem's product is an approximation and may be negative), without
    the repeated tiles, and ``attention``, their softmax over the tiles. A tile's score is its attention, averaged over
    heads.

    A bag is worked on whole, time and memory linear in the number of tiles. Only the token's row of the last layer is
    computed. In evaluation the tokens of a very long bag (:data:`LONG_BAG`) are made anew, part by part, whenever a
    layer needs them: some 16 bytes a tile are kept, and twice the work is done.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: width of a token.
        heads: of both layers, a divisor of ``hidden_dim``.
        landmarks: of the Nystroem attention; None for the reference's, half of ``hidden_dim``.
        dropout: on the result of both layers in training.

    Raises:
        ValueError: ``heads`` does not divide ``hidden_dim``.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import TransMIL
        >>> network = TransMIL(in_channels=16, num_classes=2, hidden_dim=32, heads=2).eval()
        >>> output = network(torch.randn(1, 16, 10), return_dict=True)  # laid out as 4 x 4 tiles, six of them repeated
        >>> list(output["attention"].shape)
        [1, 2, 10]
    """

    score_parameters = ("hidden", "token", "norm_layer1", "layer1", "positions", "norm_layer2", "layer2.project")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 512,
        heads: int = 8,
        landmarks: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_classes)
        if landmarks is None:
            landmarks = hidden_dim // 2
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.token = nn.Parameter(torch.randn(1, 1, hidden_dim))
        self.norm_layer1 = nn.LayerNorm(hidden_dim)
        self.layer1 = NystromAttention(hidden_dim, heads, landmarks, dropout=dropout)
        self.positions = SquarePositions(hidden_dim)
        self.norm_layer2 = nn.LayerNorm(hidden_dim)
        self.layer2 = NystromAttention(hidden_dim, heads, landmarks, dropout=dropout)
        self.norm = nn.LayerNorm(hidden_dim)
        self.classifier = nn.Linear(hidden_dim, num_classes)

    def _bag_and_scores(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The class token behind both layers ``[b, i]`` and its exact scores ``[b, h, n]`` for real tiles only."""
        if torch.jit.is_scripting() or is_recorded() or torch.is_grad_enabled():
            return self._held(image)
        return self._streamed(image) if self._is_long(image) else self._held(image)

    @torch.jit.unused
    def _is_long(self, image: Tensor) -> bool:
        return image.shape[2] > LONG_BAG.get(image.device.type, LONG_BAG["cpu"])

    def _held(self, image: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self._tokens(image)
        normed = self.norm_layer2(tokens)
        token = tokens[:, 0] + self.layer2.row(normed, 0)
        return self.norm(token.to(self.norm.weight.dtype)), self._token_scores(normed, image.shape[2])

    @torch.jit.unused
    def _streamed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The same without gradients, holding some blocks of tokens."""
        side = square_side(image.shape[2])
        tokens = self._stream_tokens(image, side)
        probe = self.layer2.probe(self.norm_layer2(tokens.rows(0, 1)))
        scores = probe.new_empty([*probe.shape[:2], tokens.count])

        def normed(start: int, stop: int) -> Tensor:
            rows = self.norm_layer2(tokens.rows(start, stop))
            scores[:, :, start:stop] = exact_matmul(probe, rows.transpose(1, 2))
            return rows

        token = self.layer2.stream_row(normed, tokens.count, 0) + tokens.rows(0, 1)[:, 0]
        return self.norm(token.to(self.norm.weight.dtype)), scores[:, :, 1 : image.shape[2] + 1].clone()

    @torch.jit.unused
    def _stream_tokens(self, image: Tensor, side: int) -> TokenSequence:
        """:meth:`_tokens`, made when asked for."""
        count, real, step = 1 + side * side, image.shape[2], STEP_TOKENS

        def enter(start: int, stop: int) -> Tensor:
            """From the features, the first tiles once more behind the last and the class token before the first."""
            ends = [(max(start, 1) - 1, min(stop - 1, real)), (max(start - 1, real) - real, stop - 1 - real)]
            rows = torch.cat([image[:, :, first:last] for first, last in ends if first < last], dim=2)
            tokens = F.relu(self.hidden(rows.transpose(1, 2).to(self.hidden.weight.dtype)))
            if start > 0:
                return tokens
            return torch.cat([self.token.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)

        entered = TokenSequence(enter, count, step)
        attention = self.layer1.stream(lambda start, stop: self.norm_layer1(entered.rows(start, stop)), count)
        attended = TokenSequence(lambda start, stop: entered.rows(start, stop) + attention(start, stop), count, step)

        def place(start: int, stop: int) -> Tensor:
            first, last = max(start, 1) - 1, stop - 1
            top, bottom = max(0, first // side - 3), min(side, -(-last // side) + 3)
            square = attended.rows(1 + top * side, 1 + bottom * side).transpose(1, 2).unflatten(2, [-1, side])
            placed = self.positions.at_once(square).flatten(2).transpose(1, 2)
            placed = placed[:, first - top * side : last - top * side]
            return torch.cat([attended.rows(0, 1), placed], dim=1) if start == 0 else placed

        return TokenSequence(place, count, max(step, 24 * side))

    @torch.jit.unused
    def _scores(self, image: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and self._is_long(image):
            return self._streamed(image)[1]
        return self._token_scores(self.norm_layer2(self._tokens(image)), image.shape[2])

    def _token_scores(self, normed: Tensor, count: int) -> Tensor:
        """Exact scores of the class token for the ``count`` real tiles behind it."""
        real = torch.arange(count, device=normed.device) + 1
        return self.layer2.scores(normed, 0).index_select(2, real)

    def _tokens(self, image: Tensor) -> Tensor:
        """The class token and the square of tiles as the second layer meets them, ``[b, 1 + side * side, i]``."""
        tokens = F.relu(self.hidden(image.transpose(1, 2).to(self.hidden.weight.dtype)))
        side = square_side(tokens.shape[1])
        tokens = fill_square(tokens, side)  # one name throughout: a long bag's tokens are not kept twice
        tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], dim=1)
        tokens = tokens + self.layer1(self.norm_layer1(tokens))
        return torch.cat([tokens[:, :1], self.positions(tokens[:, 1:], side)], dim=1)

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        return TransMIL(12, 3, hidden_dim=16, heads=2), (12,)

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor], heads: int = 8, dropout: float = 0.1) -> TransMIL:
        """A TransMIL checkpoint.

        Args:
            state_dict: parameters under the reference's names.
            heads: of its layers, eight in the reference.
            dropout: as in the constructor; a checkpoint does not tell.

        Raises:
            ValueError: the names or shapes are another network's.
        """
        parameters = {}
        for name, tensor in check_tensors(state_dict).items():
            for theirs, ours in REFERENCE_NAMES.items():
                name = re.sub(rf"^{theirs}", ours, name)
            parameters[name] = tensor.float().squeeze(3) if name.endswith("mix.weight") else tensor.float()
        hidden_dim, in_channels = (size_of(parameters, "hidden.weight", axis) for axis in (0, 1))
        network = cls(in_channels, size_of(parameters, "classifier.weight", 0), hidden_dim, heads, dropout=dropout)
        load_reference(network, parameters)
        return network


class SquarePositions(nn.Module):
    """``x + k3 * x + k5 * x + k7 * x`` over a square of tiles, depthwise and zero-padded: TransMIL's PPEG.

    The kernels and the identity are added up first: one convolution of width 7.

    Args:
        channels: ``i``.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.three = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.five = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.seven = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)

    def forward(self, tiles: Tensor, side: int) -> Tensor:
        """``[b, side * side, i]`` to the same."""
        square = tiles.transpose(1, 2).unflatten(2, [side, side])
        if torch.jit.is_tracing():  # ONNX has no convolution with a computed kernel
            mixed = square + self.three(square) + self.five(square) + self.seven(square)
        else:
            mixed = self.at_once(square)
        return mixed.flatten(2).transpose(1, 2)

    def at_once(self, square: Tensor) -> Tensor:
        """One convolution over some rows of the square, ``[b, i, r, side]``, as if they were all."""
        kernel = F.pad(self.three.weight, [2, 2, 2, 2]) + F.pad(self.five.weight, [1, 1, 1, 1]) + self.seven.weight
        centre = torch.zeros_like(kernel[:1, :, :, :])
        centre[:, :, 3, 3] = 1
        three, five, seven = self.three.bias, self.five.bias, self.seven.bias
        assert three is not None  # TorchScript cannot know
        assert five is not None
        assert seven is not None
        square = square.contiguous()  # the gradients of a CPU's depthwise convolution are twice as fast
        return F.conv2d(square, kernel + centre, three + five + seven, padding=3, groups=kernel.shape[0])


def square_side(count: int) -> int:
    """Side of the smallest square that holds ``count`` tiles; what is exported computes it from its own bag."""
    if torch.jit.is_scripting():
        return math.ceil(math.sqrt(count))
    if torch.jit.is_tracing():
        return torch.as_tensor(count).double().sqrt().ceil().long()  # type: ignore[return-value]
    if torch.compiler.is_exporting():
        side: int = torch.scalar_tensor(count, dtype=torch.double).sqrt().ceil().long().item()  # type: ignore[assignment]
        torch._check(side >= 2)
        return side
    return math.ceil(torch.sym_sqrt(count))


def fill_square(tiles: Tensor, side: int) -> Tensor:
    """``[b, n, i]`` to ``[b, side * side, i]``: the first tiles once more behind the last."""
    if torch.jit.is_scripting():
        return torch.cat([tiles, tiles[:, : side * side - tiles.shape[1]]], dim=1)
    if torch.compiler.is_exporting():  # which cannot see that a slice of this length fits
        return tiles.index_select(1, torch.arange(side * side, device=tiles.device) % tiles.shape[1])
    return torch.cat([tiles, tiles[:, : side * side - tiles.shape[1]]], dim=1)
