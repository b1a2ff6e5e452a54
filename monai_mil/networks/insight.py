"""INSIGHT: the heatmap inside the network (MLHC 2025, PMLR 298, arXiv 2412.02012)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from monai_mil.networks.blocks import (
    InsightTiles,
    TileBag,
    check_codes,
    check_token_mask,
    check_tokens,
    decode_tiles,
    front_lengths,
    instance_mask,
    map_tiles,
    non_finite_message,
    otsu_threshold,
    smooth_max,
    write_columns,
)
from monai_mil.networks.contract import MILNetwork, check_bag, check_shape
from monai_mil.networks.graph import is_recorded
from monai_mil.networks.reference import insight_parameters, load_reference, size_of


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
    them again, see :mod:`monai_mil.networks.blocks.tile_chunks`. The bag may be a memory-mapped float16 tensor.

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
        chunk_instances: tiles worked on at once, which never changes the result; None for 32 on a CPU, whose cache they
            fit, and 256 on a GPU, which fewer do not fill.
        context: False for the paper's ablation without context suppression, ``H = sigmoid(z)``.
        pooling: ``"smooth_max"``, or for comparisons ``"max"``, ``"mean"`` or ``"lp"``, the ``alpha``-th root of the
            mean of ``H' ^ alpha``.

    Raises:
        ValueError: an option is none of those named, or a chunk has no tile.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import INSIGHT
        >>> network = INSIGHT(in_channels=16, num_classes=2, grid=(4, 4), reduced=8, widths=(8, 4))
        >>> output = network(torch.randn(1, 16, 10, 4, 4), return_dict=True)  # ten tiles of 4 x 4 tokens
        >>> list(output["heatmap"].shape), list(output["prob"].shape)
        ([1, 2, 10, 4, 4], [1, 2])
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
        chunk_instances: int | None = None,
        context: bool = True,
        pooling: str = "smooth_max",
    ) -> None:
        super().__init__(num_classes)
        _check_option("norm", norm, ("layer", "group"))
        _check_option("projection", projection, ("conv_gelu_ln", "linear"))
        _check_option("pool_over", pool_over, ("all", "foreground"))
        _check_option("pooling", pooling, ("smooth_max", "max", "mean", "lp"))
        if pooling == "lp" and alpha < 1:
            raise ValueError(f"pooling 'lp' needs an exponent of at least 1, got alpha {alpha}")
        if chunk_instances is not None and chunk_instances < 1:
            raise ValueError(f"chunk_instances must be at least 1, got {chunk_instances}")
        if norm == "layer" and (grid is None or len(grid) != 2):
            raise ValueError(f"norm 'layer' needs the token grid as (h, w), got {grid}; 'group' takes any")
        self.in_channels = in_channels
        self.height, self.width = (0, 0) if norm == "group" or grid is None else grid
        self.alpha = alpha
        self.pool_over = pool_over
        self.pooling = pooling
        self.chunk_instances = chunk_instances or 0
        positions = (self.height, self.width) if self.height else ()
        self.tiles = InsightTiles(in_channels, num_classes, positions, reduced, tuple(widths), projection, context)

    def forward(
        self,
        image: Tensor,
        mask: Tensor | None = None,
        return_dict: bool = False,
        scale: Tensor | None = None,
        offset: Tensor | None = None,
    ) -> Tensor:
        """Classify a batch of bags.

        Args:
            image: tokens ``[b, d, n, h, w]`` of any floating type, on any device and in memory or a mapped file; or
                their codes, uint8, with ``scale`` and ``offset``. They are brought to the network chunk by chunk.
            mask: True where an instance ``[b, n]`` or a token ``[b, n, h, w]`` is real; None if all are.
            return_dict: return the whole output instead of the logits; ignored in TorchScript. It then holds ``mask``
                ``[b, n]`` where one is given, and ``token_mask`` where it is one of tokens.
            scale: ``[b, d]``; a feature is ``offset + scale * code``.
            offset: ``[b, d]``.

        Returns:
            Logits ``[b, c]``, or the dict.

        Raises:
            ValueError: a bag has no instance, a real feature is not finite, or the shapes do not fit.
        """
        if torch.jit.is_scripting():
            return self.describe(image, mask, scale, offset)["logits"]
        output = self.describe(image, mask, scale, offset)
        if not return_dict:
            return output["logits"]
        instances = instance_mask(mask)
        if mask is not None and instances is not None:
            output["mask"] = instances
            if mask.dim() == 4:
                output["token_mask"] = mask
        return output  # type: ignore[return-value]

    def describe(
        self, image: Tensor, mask: Tensor | None, scale: Tensor | None = None, offset: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See :meth:`forward`. What is not finite shows in the heatmap: a bag on disk is not read once more for it."""
        if torch.jit.is_scripting():
            check_bag(image, instance_mask(mask))
            self._check_input(image, mask, scale, offset)
            return self._whole(image, mask, scale, offset)
        if is_recorded():
            return self._whole(image, mask, scale, offset)
        check_shape(image, instance_mask(mask))
        self._check_input(image, mask, scale, offset)
        return self._in_chunks(image.as_subclass(Tensor), mask, scale, offset)

    @torch.jit.unused
    @torch.no_grad()
    def pool_chunks(self, chunks: Iterable[Tensor | np.ndarray], mask: Tensor | None = None) -> dict[str, Tensor]:
        """Evaluate one bag that does not fit into memory.

        Args:
            chunks: the instances in order, ``[m, d, h, w]`` each, tensors or arrays of any floating type. They are
                moved to the network's device; nothing but the maps of their tokens is kept.
            mask: True where an instance ``[n]`` or a token ``[n, h, w]`` is real; None if all are.

        Returns:
            The output of a batch of one bag, as from ``forward(..., return_dict=True)`` but for the masks.

        Raises:
            ValueError: no instance came, a feature is not floating point or not finite, or the mask is another bag's.
        """
        stores: list[Tensor] = []
        written, grid = 0, (0, 0)
        for chunk in chunks:
            tiles = torch.as_tensor(chunk)
            if len(tiles) == 0:
                continue
            self._check_input(tiles.transpose(0, 1)[None], None, None, None)
            grid = (tiles.shape[2], tiles.shape[3])
            bag = TileBag(tiles, next(self.parameters()))
            maps = [each.flatten(1) for each in map_tiles(self._token_maps, self.tiles, bag, self.tiles_at_once())]
            stores = stores or [each.new_empty(self.num_classes, 65536) for each in maps]
            stores = [write_columns(store, written, each) for store, each in zip(stores, maps, strict=True)]
            written += maps[0].shape[1]
        if written == 0:
            raise ValueError("a bag without instances has no prediction")
        heatmap, detection = (store[None, :, :written].unflatten(2, (-1, *grid)) for store in stores)
        whole = None if mask is None else mask[None].to(heatmap.device)
        if whole is not None:
            check_shape(heatmap, instance_mask(whole))
            check_token_mask(heatmap, whole)
        return self._checked_answer(heatmap, detection, whole)

    @torch.jit.unused
    def _in_chunks(
        self, image: Tensor, mask: Tensor | None, scale: Tensor | None, offset: Tensor | None
    ) -> dict[str, Tensor]:
        """Bag by bag over the real instances only, in chunks of them."""
        instances = instance_mask(mask)
        lengths = [image.shape[2]] * len(image) if instances is None else front_lengths(instances)
        like, maps = next(self.parameters()), []
        for index, tiles in enumerate(image.transpose(1, 2)):
            real = None
            if instances is not None and lengths[index] < len(tiles):
                real = torch.nonzero(instances[index]).flatten()
            codes = () if scale is None or offset is None else (scale[index], offset[index])
            bag = TileBag(tiles, like, real, *codes)
            maps.append(map_tiles(self._token_maps, self.tiles, bag, self.tiles_at_once()))
        heatmap, detection = (
            each[0][None] if len(each) == 1 else torch.stack(each) for each in zip(*maps, strict=True)
        )
        return self._checked_answer(heatmap, detection, mask)

    def _whole(
        self, image: Tensor, mask: Tensor | None, scale: Tensor | None, offset: Tensor | None
    ) -> dict[str, Tensor]:
        """The same in plain operations on the whole batch: what TorchScript, traces and ONNX hold."""
        tiles = image.transpose(1, 2)
        if scale is not None and offset is not None:
            scale, offset = _of_tiles(scale, tiles), _of_tiles(offset, tiles)
        heatmap, detection = self._maps_of_all(tiles.flatten(0, 1), scale, offset)
        heatmap = heatmap.unflatten(0, (image.shape[0], image.shape[2])).transpose(1, 2)
        detection = detection.unflatten(0, (image.shape[0], image.shape[2])).transpose(1, 2)
        return self._answer(heatmap, detection, mask)

    def _maps_of_all(self, tiles: Tensor, scale: Tensor | None, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        """:meth:`_token_maps` of any number of tiles; in TorchScript, which knows loops, a chunk at a time."""
        if not torch.jit.is_scripting():
            return self._token_maps(decode_tiles(tiles, self.tiles.detection_score.weight, scale, offset))
        heatmaps: list[Tensor] = []
        detections: list[Tensor] = []
        chunk = self.tiles_at_once()
        for start in range(0, tiles.shape[0], chunk):
            stop = start + chunk
            part = decode_tiles(
                tiles[start:stop],
                self.tiles.detection_score.weight,
                None if scale is None else scale[start:stop],
                None if offset is None else offset[start:stop],
            )
            heatmap, detection = self._token_maps(part)
            heatmaps.append(heatmap)
            detections.append(detection)
        return torch.cat(heatmaps), torch.cat(detections)

    def tiles_at_once(self) -> int:
        """Tiles that are worked on together where the network is."""
        if self.chunk_instances > 0:
            return self.chunk_instances
        return 256 if self.tiles.detection_score.weight.is_cuda else 32

    def _token_maps(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """Heatmap and detection logits, ``[m, c, h, w]`` each."""
        detection, context = self.tiles(tiles)
        return torch.sigmoid(detection) * torch.sigmoid(-context), detection

    @torch.jit.unused
    def _checked_answer(self, heatmap: Tensor, detection: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The answer, after one look at the maps: refuses what is not finite and tells of what is flat."""
        output = self._answer(heatmap, detection, mask)
        finite = torch.isfinite(output["heatmap"].detach())
        broken, flat = torch.stack([~finite.all(), (output["threshold"] < 0).any()]).tolist()
        if broken:
            raise ValueError(non_finite_message(self, finite))
        if flat:
            warnings.warn("a heatmap is the same everywhere: Otsu cannot split it, all of it is kept", stacklevel=4)
        return output

    def _answer(self, heatmap: Tensor, detection: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        real: Tensor | None = None
        if mask is not None:
            tokens = mask[:, None, :, None, None] if mask.dim() == 2 else mask[:, None]
            heatmap, detection = heatmap.masked_fill(~tokens, 0.0), detection.masked_fill(~tokens, 0.0)
            real = tokens.expand_as(heatmap[:, :1]).flatten(2)
        values = heatmap.flatten(2)
        threshold = _split(values.detach(), real)
        kept = values > threshold[:, :, None]
        if real is not None:
            kept = kept & real
        prob = self._pool(values.masked_fill(~kept, 0.0), kept if self.pool_over == "foreground" else real)
        clamped = prob.clamp(1e-12, 0.999)
        return {
            "logits": torch.log(clamped) - torch.log1p(-clamped),
            "prob": prob,
            "heatmap": heatmap,
            "threshold": threshold,
            "detection_logits": detection,
        }

    def _pool(self, values: Tensor, counted: Tensor | None) -> Tensor:
        """``p`` of the kept tokens ``[b, c, m]``, which are 0 elsewhere."""
        if self.pooling == "smooth_max":
            return smooth_max(values, self.alpha, counted)
        if self.pooling == "max":
            return values.amax(dim=2)
        exponent = self.alpha if self.pooling == "lp" else 1.0
        powers = values.double().pow(exponent)
        mean = powers.mean(dim=2) if counted is None else powers.sum(dim=2) / counted.expand_as(values).sum(dim=2)
        return mean.clamp(min=1e-300).pow(1 / exponent).to(values.dtype)

    def _check_input(self, image: Tensor, mask: Tensor | None, scale: Tensor | None, offset: Tensor | None) -> None:
        check_tokens(image, self.in_channels, self.height, self.width)
        check_token_mask(image, mask)
        check_codes(image, scale, offset)

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor], alpha: float = 8.0) -> INSIGHT:
        """The reference's network, for any grid and number of labels.

        Args:
            state_dict: parameters under the reference's names.
            alpha: of SmoothMax; a checkpoint does not tell.

        Raises:
            ValueError: the names or shapes are another network's.
        """
        parameters = insight_parameters(state_dict)
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


def _of_tiles(values: Tensor, tiles: Tensor) -> Tensor:
    """Values ``[b, d]`` of bags for each of their tiles ``[b, n, d, h, w]``: ``[b n, d]``."""
    return values[:, None].expand(-1, tiles.shape[1], -1).flatten(0, 1)


def _check_option(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got '{value}'")
