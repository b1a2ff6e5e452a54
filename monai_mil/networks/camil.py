"""CAMIL: context-aware MIL with attention to a tile's neighbours (Fourkioti, De Vries and Bakal, ICLR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_mil.networks.blocks import BagByBagNetwork, GatedAttention, NystromAttention
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul
from monai_mil.networks.graph import is_recorded


class CAMIL(BagByBagNetwork):
    """Every tile is seen by the whole slide (Nystroem attention) and weighed by the tiles around it.

    ``h_i = W x_i + b``; ``t = h + Nystroem(h)``. ``N_i`` are the tiles within one step of tile ``i`` in the grid;
    ``D_ij = |x_i - x_j|`` of their features; ``A_ij = exp(-D_ij / sqrt(sum_k D_ik^2))``; ``A_ii`` is the highest of
    them, or 1 for a tile that stands alone. ``w_i = sum_j A_ij (W_q t_i) . (W_k t_j) / sqrt(e)``;
    ``l_i = softmax(w)_i (W_v h_i + b_v)``; ``m_i = sigmoid(l_i) * l_i + (1 - sigmoid(l_i)) * t_i``. The bag is read by
    gated attention, ``a = softmax(v^T (tanh(V m_i) * sigmoid(U m_i)))``; ``z = sum_i a_i m_i``; ``logits = C z + c``.
    Where tiles overlap or slides lie on each other, the nearest eight are taken, earlier ones first.

    The image has two rows more than features: column and row of a tile in the grid, as
    ``monai_mil.bags.PositionsAsFeaturesd`` sets them behind the features. The order of the tiles matters to the
    Nystroem attention, as in TransMIL.

    Other than in the released program: it sees seven of the eight neighbours and takes features of 512 values as they
    are, without ``W``; its fusion weighs ``l`` by ``2 sigmoid(-l)^2`` and ``t`` by the rest, where the paper's gate is
    taken here. All pairs of tiles are compared to find neighbours, in chunks; what is exported compares them at once.

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
        self.places = 2
        self.neighbours = 8
        self.chunk_rows = 512
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.context = NystromAttention(hidden_dim, heads, landmarks)
        self.query = nn.Linear(hidden_dim, neighbour_dim, bias=False)
        self.key = nn.Linear(hidden_dim, neighbour_dim, bias=False)
        self.value = nn.Linear(hidden_dim, hidden_dim)
        self.attention = GatedAttention(hidden_dim, attention_dim)
        self.classifier = nn.Linear(hidden_dim, num_classes)

    def _bag_and_scores(self, image: Tensor) -> tuple[Tensor, Tensor]:
        tiles, scores = self._tiles_and_scores(image)
        return exact_matmul(torch.softmax(scores, dim=2), tiles)[:, 0], scores

    def _tiles_and_scores(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The ``m_i`` ``[b, n, i]`` and the readout's scores ``[b, 1, n]``, float32 or better, of real tiles only."""
        if not is_recorded() and image.shape[1] != self.in_channels + self.places:
            raise ValueError(
                f"a bag for CAMIL has {self.in_channels} features and {self.places} positions a tile, this one "
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
        place, there = self._neighbours(places)
        keys = keys.to(exact_dtype(keys.dtype))
        apart = self._apart(features, place).masked_fill(~there, 0.0)
        spread = apart.sum(dim=2, keepdim=True).sqrt().clamp(min=1e-12)
        like = torch.exp(-apart.sqrt() / spread).masked_fill(~there, 0.0)
        own = like.amax(dim=2, keepdim=True)
        own = torch.where(own > 0, own, torch.ones_like(own))
        near = keys.gather(1, place.flatten(1)[:, :, None].expand(-1, -1, keys.shape[2]))
        near = near.unflatten(1, [place.shape[1], place.shape[2]])
        return own * keys + exact_matmul(like[:, :, None], near)[:, :, 0]

    def _apart(self, features: Tensor, place: Tensor) -> Tensor:
        """``D_ij^2`` of every tile and those at ``place`` ``[b, n, k]``."""
        found: list[Tensor] = []
        for index in range(self.neighbours):
            other = features.gather(1, place[:, :, index : index + 1].expand(-1, -1, features.shape[2]))
            found.append((features - other).square().sum(dim=2))
        return torch.stack(found, dim=2)

    def _neighbours(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Which tiles lie within one step of every tile, and which of these there are, ``[b, n, 8]``."""
        places = places.clamp(min=-1e6, max=1e6)
        if torch.jit.is_scripting() or is_recorded():
            return self._search(places, places, 0)
        parts = places.split(self.chunk_rows, dim=1)
        found = [self._search(part, places, index * self.chunk_rows) for index, part in enumerate(parts)]
        return torch.cat([each[0] for each in found], dim=1), torch.cat([each[1] for each in found], dim=1)

    def _search(self, some: Tensor, places: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """:meth:`_neighbours` of some tiles, the first of which is number ``start``; the nearest come first."""
        count = torch.ones_like(places[0, :, 0]).sum().long()
        index = torch.ones_like(places[0, :, 0]).cumsum(dim=0).long() - 1
        own = torch.ones_like(some[0, :, 0]).cumsum(dim=0).long() - 1 + start
        steps = (some[:, :, None] - places[:, None]).abs().amax(dim=3).clamp(max=2.0).long()
        steps = steps.masked_fill(own[:, None] == index[None], 2)
        order = steps * count + index
        # A bag of fewer tiles than neighbours has places to spare too, behind all others.
        spare = torch.full_like(order[:, :, :1], 1 << 40).expand(-1, -1, self.neighbours)
        best, place = torch.cat([order, spare], dim=2).topk(self.neighbours, dim=2, largest=False)
        there = best < 2 * count
        return torch.where(there, place, torch.zeros_like(place)), there

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d + 2]`` of one of its instances, for the contract's tests."""
        return CAMIL(10, 3, hidden_dim=16, attention_dim=8, neighbour_dim=8, heads=2, landmarks=8), (12,)
