"""CAMIL: context-aware MIL with attention to a tile's neighbours (Fourkioti, De Vries and Bakal, ICLR 2024)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_mil.networks.blocks import AttentionNetwork, GatedAttention, NystromAttention, among_padding
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul
from monai_mil.networks.graph import is_recorded

PLACES = 2
"""Rows of positions behind the features."""


class CAMIL(AttentionNetwork):
    """Every tile is seen by the whole slide (Nystroem attention) and weighed by the tiles around it.

    ``h_i = W x_i + b``; ``t = h + Nystroem(h)``. ``N_i`` are the tiles within one step of tile ``i`` in the grid;
    ``D_ij = |x_i - x_j|`` of their features; ``A_ij = exp(-D_ij / sqrt(sum_k D_ik^2))``; ``A_ii`` is the highest of
    them, or 1 for a tile that stands alone. ``w_i = sum_j A_ij (W_q t_i) . (W_k t_j) / sqrt(e)``;
    ``l_i = softmax(w)_i (W_v h_i + b_v)``; ``m_i = sigmoid(l_i) * l_i + (1 - sigmoid(l_i)) * t_i``. The bag is read by
    gated attention, ``a = softmax(v^T (tanh(V m_i) * sigmoid(U m_i)))``; ``z = sum_i a_i m_i``; ``logits = C z + c``.

    The image has two rows more than features: column and row of a tile in the grid, as
    ``monai_mil.bags.PositionsAsFeaturesd`` sets them behind the features. The order of the tiles matters to the
    Nystroem attention, as in TransMIL.

    Other than in the released program: it sees seven of the eight neighbours and takes features of 512 values as they
    are, without ``W``; its fusion weighs ``l`` by ``2 sigmoid(-l)^2`` and ``t`` by the rest, where the paper's gate is
    taken here. A slide's tiles are compared pair by pair, in chunks; a trace or an exported program compares all at
    once.

    The output holds ``logits``, ``bag`` ``[b, hidden_dim]``, and ``attention`` and ``attention_logits`` of the readout.

    Args:
        in_channels: ``d``, width of an instance's features, without the two positions.
        num_classes: ``c``.
        hidden_dim: width of ``h``, a multiple of ``heads``.
        attention_dim: rows of the readout's gates.
        neighbour_dim: ``e``, rows of ``W_q`` and ``W_k``.
        heads: of the Nystroem attention.
        landmarks: likewise.

    Raises:
        ValueError: ``heads`` does not divide ``hidden_dim``.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import CAMIL
        >>> network = CAMIL(in_channels=16, num_classes=2, hidden_dim=32, heads=2, landmarks=8).eval()
        >>> places = torch.stack(torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")).flatten(1)
        >>> image = torch.cat([torch.randn(16, 100), places])[None]
        >>> list(network(image, return_dict=True)["attention"].shape)
        [1, 1, 100]
    """

    score_parameters = ("hidden", "context", "query", "key", "value", "attention")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 512,
        attention_dim: int = 128,
        neighbour_dim: int = 256,
        heads: int = 8,
        landmarks: int = 256,
    ) -> None:
        super().__init__(num_classes)
        self.in_channels = in_channels
        self.chunk_rows = 2048
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.context = NystromAttention(hidden_dim, heads, landmarks)
        self.query = nn.Linear(hidden_dim, neighbour_dim, bias=False)
        self.key = nn.Linear(hidden_dim, neighbour_dim, bias=False)
        self.value = nn.Linear(hidden_dim, hidden_dim)
        self.attention = GatedAttention(hidden_dim, attention_dim)
        self.classifier = nn.Linear(hidden_dim, num_classes)

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        bags: list[Tensor] = []
        scores: list[Tensor] = []
        if mask is None:
            tiles, found = self._tiles_and_scores(image)
            bags.append(exact_matmul(torch.softmax(found, dim=2), tiles)[:, 0])
            scores.append(found)
        else:
            for index in range(image.shape[0]):  # the Nystroem attention of a bag knows no padding
                real = mask[index]
                tiles, found = self._tiles_and_scores(image[index : index + 1, :, real])
                bags.append(exact_matmul(torch.softmax(found, dim=2), tiles)[:, 0])
                scores.append(among_padding(found, real))
        bag, bag_scores = torch.cat(bags), torch.cat(scores)
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": torch.softmax(bag_scores, dim=2),
            "attention_logits": bag_scores,
            "bag": bag,
        }

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        if mask is None:
            return self._tiles_and_scores(image)[1]
        parts = [self._tiles_and_scores(bag[:, :, real])[1] for bag, real in zip(image.split(1), mask, strict=True)]
        return torch.cat([among_padding(part, real) for part, real in zip(parts, mask, strict=True)])

    def _tiles_and_scores(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The ``m_i`` ``[b, n, i]`` and the readout's scores ``[b, 1, n]``, float32 or better, of real tiles only."""
        if not torch.jit.is_scripting() and not is_recorded() and image.shape[1] != self.in_channels + PLACES:
            raise ValueError(
                f"a bag for CAMIL has {self.in_channels} features and {PLACES} positions a tile, this one "
                f"{image.shape[1]} channels; monai_mil.bags.PositionsAsFeaturesd sets positions behind the features"
            )
        rows = image.transpose(1, 2)
        features = rows[:, :, : self.in_channels].to(self.hidden.weight.dtype)
        places = rows[:, :, self.in_channels :].float().round()
        hidden = self.hidden(features)
        tiles = hidden + self.context(hidden)
        width = self.key.weight.shape[0]
        around = self._around(features.detach().to(exact_dtype(features.dtype)), places, self.key(tiles))
        weight = (self.query(tiles).to(around.dtype) * around).sum(dim=2) * width**-0.5
        near = torch.softmax(weight, dim=1)[:, :, None] * self.value(hidden)
        gate = torch.sigmoid(near)
        merged = gate * near + (1 - gate) * tiles
        return merged, self.attention(merged, None)

    def _around(self, features: Tensor, places: Tensor, keys: Tensor) -> Tensor:
        """``sum_j A_ij k_j`` of every tile, ``[b, n, e]``, float32 or better."""
        keys = keys.to(exact_dtype(keys.dtype))
        if torch.jit.is_scripting():
            return self._around_pairs(features, places, keys)
        if is_recorded():
            return self._around_at_once(features, places, keys)
        return self._around_pairs(features, places, keys)

    def _around_pairs(self, features: Tensor, places: Tensor, keys: Tensor) -> Tensor:
        """Over the pairs of neighbours, which are found in chunks of tiles."""
        found: list[Tensor] = []
        for bag in range(features.shape[0]):
            one, other = self._pairs(places[bag])
            apart = (features[bag].index_select(0, one) - features[bag].index_select(0, other)).square().sum(dim=1)
            zero = torch.zeros(features.shape[1], dtype=features.dtype, device=features.device)
            spread = zero.index_add(0, one, apart).sqrt().clamp(min=1e-12)
            like = torch.exp(-apart.sqrt() / spread.index_select(0, one))
            own = zero.scatter_reduce(0, one, like, "amax")
            own = torch.where(own > 0, own, torch.ones_like(own))
            heard = like[:, None] * keys[bag].index_select(0, other)
            found.append((own[:, None] * keys[bag]).index_add(0, one, heard))
        return torch.stack(found)

    def _pairs(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """The two tiles of every ordered pair of neighbours among places ``[n, 2]``."""
        ones: list[Tensor] = []
        others: list[Tensor] = []
        for start in range(0, places.shape[0], self.chunk_rows):
            part = places[start : start + self.chunk_rows]
            near = (part[:, None] - places[None]).abs().amax(dim=2) <= 1
            pair = near.nonzero()
            apart = pair[:, 0] + start != pair[:, 1]
            ones.append(pair[:, 0][apart] + start)
            others.append(pair[:, 1][apart])
        return torch.cat(ones), torch.cat(others)

    def _around_at_once(self, features: Tensor, places: Tensor, keys: Tensor) -> Tensor:
        """The same over all pairs of tiles, for what is recorded."""
        near = (places[:, :, None] - places[:, None]).abs().amax(dim=3) <= 1
        index = torch.ones_like(places[0, :, 0]).cumsum(dim=0)
        itself = (index[:, None] == index[None])[None]
        near = near & ~itself
        length = features.square().sum(dim=2)
        product = exact_matmul(features, features.transpose(1, 2))
        apart = (length[:, :, None] + length[:, None] - 2 * product).clamp(min=0) * near
        spread = apart.sum(dim=2, keepdim=True).sqrt().clamp(min=1e-12)
        like = torch.exp(-apart.sqrt() / spread) * near
        own = like.amax(dim=2)
        own = torch.where(own > 0, own, torch.ones_like(own))
        return exact_matmul(like, keys) + own[:, :, None] * keys

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d + 2]`` of one of its instances, for the contract's tests."""
        return CAMIL(10, 3, hidden_dim=16, attention_dim=8, neighbour_dim=8, heads=2, landmarks=8), (12,)
