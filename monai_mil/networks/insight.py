"""INSIGHT: the heatmap inside the network (MLHC 2025, PMLR 298, arXiv 2412.02012)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from monai_mil.networks.abmil import front_lengths
from monai_mil.networks.columns import write_columns
from monai_mil.networks.contract import MILNetwork, check_shape
from monai_mil.networks.ct_reference import load_reference, size_of
from monai_mil.networks.insight_tiles import InsightTiles
from monai_mil.networks.otsu import otsu_threshold
from monai_mil.networks.smooth_max import smooth_max
from monai_mil.networks.tile_chunks import map_tiles

CONVOLUTIONS = {
    "reduce_dimension_block.0": "projection.convolution",
    "backbone_block.0": "detection.0.convolution",
    "backbone_block.3": "detection.1.convolution",
    "backbone_block.6": "detection.2.convolution",
    "backbone_block.9": "detection_score",
    "context_block.1": "context.0.convolution",
    "context_block.5": "context.1.convolution",
    "context_block.9": "context.2.convolution",
    "context_block.13": "context_score",
}
"""The reference's names of the convolutions, and ours."""

NORMS = {
    "reduce_dimension_block.2": "projection",
    "backbone_block.2": "detection.0",
    "backbone_block.5": "detection.1",
    "backbone_block.8": "detection.2",
    "context_block.3": "context.0",
    "context_block.7": "context.1",
    "context_block.11": "context.2",
}
"""The reference's names of the normalisations, and our layers that hold them."""


class INSIGHT(MILNetwork):
    """INSIGHT over the token maps of tiles or slices, for one label or several that do not exclude each other.

    Every tile gives two logits a token: detection ``z`` (1 x 1 convolutions) and context ``u`` (3 x 3). The heatmap is
    ``H = sigmoid(z) (1 - sigmoid(u))``; Otsu's threshold ``T`` over all tokens of the bag keeps
    ``H' = H [H > T]``, and SmoothMax (Eq. 3) gives the probability of the label,
    ``p = sum H' exp(alpha H') / sum exp(alpha H')``, over the masked tokens too. ``p`` therefore grows with the share
    of the lesion: an operating point is chosen on validation data, 0.5 means nothing.

    The output holds ``logits`` and ``prob``, ``heatmap`` (``H``, 0 on padding), ``threshold`` (``T``; ``H'`` is what
    lies strictly above; -1 where ``H`` is flat: then all of it is kept) and ``detection_logits`` (``z``, for spectral
    decoupling). ``logits`` are those of ``prob``, brought into [1e-12, 0.999]: above, the paper's loss has no gradient
    either.

    Training holds the activations of ``chunk_instances`` tiles, whatever the bag's size: the backward pass computes
    them again, see :mod:`monai_mil.networks.tile_chunks`. The bag may be a memory-mapped float16 tensor.

    Args:
        in_channels: ``d``, width of a token.
        num_classes: ``c``, number of labels.
        grid: tokens of an instance, ``(h, w)``: UNI (14, 14), Virchow2 (16, 16), DINOv2 at 518 pixels (37, 37). None
            for any grid, with ``norm="group"`` only.
        alpha: of SmoothMax.
        reduced: width behind the projection.
        widths: of the hidden layers of each branch.
        norm: ``"layer"`` as in the paper, with a scale and shift for every channel and position; ``"group"``: the same
            statistics with a scale and shift a channel, for any grid.
        projection: ``"conv_gelu_ln"`` as in the reference, or ``"linear"`` as the paper's words say.
        pool_over: ``"all"`` as in the paper, or ``"foreground"``: tokens that Otsu drops leave the denominator too.
        chunk_instances: tiles worked on at once; never changes the result.

    Raises:
        ValueError: an option is none of those named.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int = 1,
        grid: Sequence[int] | None = (14, 14),
        alpha: float = 8.0,
        reduced: int = 128,
        widths: Sequence[int] = (128, 64, 64),
        norm: str = "layer",
        projection: str = "conv_gelu_ln",
        pool_over: str = "all",
        chunk_instances: int = 32,
    ) -> None:
        super().__init__(num_classes)
        _check_option("norm", norm, ("layer", "group"))
        _check_option("projection", projection, ("conv_gelu_ln", "linear"))
        _check_option("pool_over", pool_over, ("all", "foreground"))
        if norm == "layer" and (grid is None or len(grid) != 2):
            raise ValueError(f"norm 'layer' needs the token grid as (h, w), got {grid}; 'group' takes any")
        self.in_channels = in_channels
        self.height, self.width = (0, 0) if norm == "group" or grid is None else grid
        self.alpha = alpha
        self.pool_over = pool_over
        self.chunk_instances = chunk_instances
        positions = (self.height, self.width) if self.height else ()
        self.tiles = InsightTiles(in_channels, num_classes, positions, reduced, tuple(widths), projection)

    @torch.jit.unused
    def admit(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """Shapes only: what is not finite shows in the heatmap, and a bag on disk is not read once more for it."""
        check_shape(image, mask)
        return image

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        if torch.jit.is_scripting():
            self._check_tokens(image)
            return self._whole(image, mask)
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return self._whole(image, mask)
        self._check_tokens(image)
        return self._in_chunks(image, mask)

    @torch.jit.unused
    @torch.no_grad()
    def pool_chunks(self, chunks: Iterable[Tensor | np.ndarray]) -> dict[str, Tensor]:
        """Evaluate one bag that does not fit into memory.

        Args:
            chunks: the instances in order, ``[m, d, h, w]`` each, tensors or arrays of any floating type. They are
                moved to the network's device; nothing but the maps of their tokens is kept.

        Returns:
            The output of a batch of one bag, as from ``forward(..., return_dict=True)``.

        Raises:
            ValueError: no instance came, or a feature is not finite.
        """
        stores: list[Tensor] = []
        written, grid = 0, (0, 0)
        for chunk in chunks:
            tiles = torch.as_tensor(chunk)
            if len(tiles) == 0:
                continue
            self._check_tokens(tiles.transpose(0, 1)[None])
            grid = (tiles.shape[2], tiles.shape[3])
            maps = [
                each.flatten(1) for each in map_tiles(self._token_maps, self.tiles, tiles, None, self.chunk_instances)
            ]
            stores = stores or [each.new_empty(self.num_classes, 65536) for each in maps]
            stores = [write_columns(store, written, each) for store, each in zip(stores, maps, strict=True)]
            written += maps[0].shape[1]
        if written == 0:
            raise ValueError("a bag without instances has no prediction")
        heatmap, detection = (store[None, :, :written].unflatten(2, (-1, *grid)) for store in stores)
        return self._checked_answer(heatmap, detection, None)

    @torch.jit.unused
    def _in_chunks(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Bag by bag over the real instances only, in chunks of them."""
        lengths = [image.shape[2]] * len(image) if mask is None else front_lengths(mask)
        heatmaps, detections = [], []
        for index, tiles in enumerate(image.transpose(1, 2)):
            real = None
            if mask is not None and lengths[index] < len(tiles):
                real = torch.nonzero(mask[index]).flatten()
            heatmap, detection = map_tiles(self._token_maps, self.tiles, tiles, real, self.chunk_instances)
            heatmaps.append(heatmap)
            detections.append(detection)
        return self._checked_answer(torch.stack(heatmaps), torch.stack(detections), mask)

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The same in plain operations on the whole batch: what TorchScript, traces and ONNX hold."""
        tiles = image.transpose(1, 2)
        heatmap, detection = self._maps_of_all(tiles.flatten(0, 1))
        heatmap = heatmap.unflatten(0, (image.shape[0], image.shape[2])).transpose(1, 2)
        detection = detection.unflatten(0, (image.shape[0], image.shape[2])).transpose(1, 2)
        if mask is not None:
            hole = ~mask[:, None, :, None, None]
            heatmap, detection = heatmap.masked_fill(hole, 0.0), detection.masked_fill(hole, 0.0)
        return self._answer(heatmap, detection, mask)

    def _maps_of_all(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`_token_maps` of any number of tiles; in TorchScript, which knows loops, a chunk at a time."""
        if not torch.jit.is_scripting():
            return self._token_maps(tiles)
        heatmaps: list[Tensor] = []
        detections: list[Tensor] = []
        for start in range(0, tiles.shape[0], self.chunk_instances):
            heatmap, detection = self._token_maps(tiles[start : start + self.chunk_instances])
            heatmaps.append(heatmap)
            detections.append(detection)
        return torch.cat(heatmaps), torch.cat(detections)

    def _token_maps(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Heatmap and detection logits, ``[m, c, h, w]`` each."""
        detection, context = self.tiles(tiles)
        return torch.sigmoid(detection) * torch.sigmoid(-context), detection

    @torch.jit.unused
    def _checked_answer(self, heatmap: Tensor, detection: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The answer, after one look at the maps: refuses what is not finite and tells of what is flat."""
        output = self._answer(heatmap, detection, mask)
        finite = torch.isfinite(heatmap.detach())
        broken, flat = torch.stack([~finite.all(), (output["threshold"] < 0).any()]).tolist()
        if broken:
            bag, instance = torch.nonzero(~finite.flatten(3).all(dim=3).all(dim=1))[0].tolist()
            raise ValueError(f"bag {bag} of the batch has features that are not finite, first in instance {instance}")
        if flat:
            warnings.warn("a heatmap is the same everywhere: Otsu cannot split it, all of it is kept", stacklevel=4)
        return output

    def _answer(self, heatmap: Tensor, detection: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        tokens, real = heatmap.flatten(2), self._real_tokens(heatmap, mask)
        threshold = _split(tokens.detach(), real)
        kept = tokens > threshold[:, :, None]
        if real is not None:
            kept = kept & real
        prob = smooth_max(tokens.masked_fill(~kept, 0.0), self.alpha, kept if self.pool_over == "foreground" else real)
        clamped = prob.clamp(1e-12, 0.999)
        return {
            "logits": torch.log(clamped) - torch.log1p(-clamped),
            "prob": prob,
            "heatmap": heatmap,
            "threshold": threshold,
            "detection_logits": detection,
        }

    def _real_tokens(self, heatmap: Tensor, mask: Tensor | None) -> Tensor | None:
        """The mask for every token, ``[b, 1, n h w]``."""
        if mask is None:
            return None
        return mask[:, None, :, None, None].expand_as(heatmap[:, :1]).flatten(2)

    def _check_tokens(self, image: Tensor) -> None:
        if image.dim() != 5 or image.shape[1] != self.in_channels:
            raise ValueError(f"INSIGHT takes bags [b, {self.in_channels}, n, h, w], got {list(image.shape)}")
        if self.height > 0 and (image.shape[3] != self.height or image.shape[4] != self.width):
            raise ValueError(
                f"this INSIGHT was made for tokens on a grid {self.height} x {self.width}, the bag has "
                f"{image.shape[3]} x {image.shape[4]}"
            )

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor], alpha: float = 8.0) -> INSIGHT:
        """The reference's network, for any grid and number of labels.

        Args:
            state_dict: parameters under the reference's names.
            alpha: of SmoothMax; a checkpoint does not tell.

        Raises:
            ValueError: the names or shapes are another network's.
        """
        parameters = {}
        for name, tensor in state_dict.items():
            # The reference normalises [channels, h, w]; here channels are last.
            value = tensor.float()
            parameters[_renamed(name)] = value.permute(1, 2, 0) if value.dim() == 3 else value
        reduced, *grid_first = (size_of(parameters, "projection.scale", axis) for axis in (2, 0, 1))
        network = cls(
            size_of(parameters, "projection.convolution.weight", 1),
            size_of(parameters, "detection_score.bias", 0),
            grid_first,
            alpha,
            reduced,
            [size_of(parameters, f"detection.{layer}.convolution.bias", 0) for layer in range(3)],
        )
        load_reference(network.tiles, parameters)
        return network

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d, h, w]`` of one of its instances, for the contract's tests."""
        return INSIGHT(12, 3, grid=(3, 4), reduced=8, widths=(8, 6, 6)), (12, 3, 4)


def _split(tokens: Tensor, real: Tensor | None) -> Tensor:
    """Otsu's thresholds ``[b, c]`` of ``[b, c, m]``; -1, below every token, where there is nothing to split."""
    low, high = tokens, tokens
    if real is not None:
        low, high = tokens.masked_fill(~real, float("inf")), tokens.masked_fill(~real, -float("inf"))
    flat = high.amax(dim=2) - low.amin(dim=2) < 1e-6
    return otsu_threshold(tokens, real).masked_fill(flat, -1.0)


def _check_option(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got '{value}'")


def _renamed(name: str) -> str:
    """This package's name of a parameter of the reference; a name it does not know stays as it is."""
    layer, _, kind = name.rpartition(".")
    if layer in CONVOLUTIONS:
        return f"{CONVOLUTIONS[layer]}.{kind}"
    return f"{NORMS[layer]}.{'scale' if kind == 'weight' else 'shift'}" if layer in NORMS else name
