"""Patch-GCN: a graph of neighbouring tiles (Chen et al., MICCAI 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import LongBagNetwork, RunningPool, dropped, nearest_instances
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul

SQUARE = 64
"""Side of the squares of a long bag's grid that are made at once, with those around that they take from."""


class PatchGCN(LongBagNetwork):
    """Tiles take from their nearest neighbours on the slide, layer by layer; gated attention pools all layers.

    ``h0_i = relu(W x_i + b)``. A graph convolution (GENConv) takes ``m_j = relu(h_j) + 1e-7`` of the neighbours ``j``
    of tile ``i`` and gives ``G(h)_i = W2 relu(LN(W1 (h_i + sum_j softmax_j(t m_j) m_j)))``, where the softmax is one of
    every channel and ``t`` is learned. ``h1 = G1(h0)``; ``h_l = h_{l-1} + relu(LN(G_l(h_{l-1})))`` for the others;
    ``g_i = relu(P (h0_i, h1_i, ...) + p)``; ``s_i = w^T (tanh(V g_i) * sigmoid(U g_i))``; ``a = softmax(s)``;
    ``z = relu(Q sum_i a_i g_i + q)``; ``logits = C z + c``.

    The image has two channels more than features: the tile's column and row in the grid of tiles, as
    ``bags.PositionsAsFeaturesd`` sets them behind the features. The order of the tiles does not matter. A tile without
    neighbours, as in a bag of one, takes nothing.

    The output holds ``logits``, ``attention``, ``attention_logits`` and ``bag`` ``[b, (layers + 1) hidden_dim]``. A
    tile's score is its attention.

    The paper's graph has ``k = 8``. The authors' program sends from each tile to the eight that are nearest to it, so
    that a tile at the edge of the tissue takes from more or fewer; here each takes from its own eight nearest, of
    equally far ones the one farther left, then up. A trace and an exported program compare all pairs of tiles, ``n^2``
    distances at once. Evaluation goes through a long bag square by square of its grid.

    Args:
        in_channels: ``d``, width of an instance's features, without the two positions.
        num_classes: ``c``.
        hidden_dim: width of ``h``.
        layers: graph convolutions.
        neighbours: ``k``.
        dropout: of ``h0``, of ``g``, behind the tanh and the sigmoid, and of ``z``, in training.
        layer_dropout: of ``h_l`` behind the first, in training.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import PatchGCN
        >>> network = PatchGCN(in_channels=16, num_classes=2, hidden_dim=8).eval()
        >>> places = torch.stack(torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")).flatten(1)
        >>> image = torch.cat([torch.randn(16, 100), places])[None]
        >>> list(network(image, return_dict=True)["attention"].shape)
        [1, 1, 100]
    """

    score_parameters = ("hidden", "layers", "merge", "gates", "score")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 128,
        layers: int = 3,
        neighbours: int = 8,
        dropout: float = 0.25,
        layer_dropout: float = 0.1,
    ) -> None:
        super().__init__(num_classes)
        width = (layers + 1) * hidden_dim
        self.in_channels = in_channels
        self.neighbours = neighbours
        self.dropout = dropout
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.layers = nn.ModuleList([_GraphLayer(hidden_dim, layer > 0, layer_dropout) for layer in range(layers)])
        self.merge = nn.Linear(width, width)
        self.gates = nn.Linear(width, 2 * width)
        self.score = nn.Linear(width, 1)
        self.rho = nn.Linear(width, width)
        self.classifier = nn.Linear(width, num_classes)

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        rows, scores = self._rows_and_scores(image, mask)
        if mask is not None:
            rows = rows.masked_fill(~mask[:, :, None], 0.0)
        return self._answer(exact_matmul(torch.softmax(scores, dim=2), rows)[:, 0], scores)

    @torch.jit.unused
    def _answer_rows(self, rows: Tensor) -> dict[str, Tensor]:
        places = rows[:, self.in_channels :].to(exact_dtype(self.hidden.weight.dtype))
        index, there = nearest_instances(places[None], None, self.neighbours)
        corner = (places - places.amin(dim=0)).div(SQUARE, rounding_mode="floor")
        order = (corner[:, 0] * (corner[:, 1].amax() + 1) + corner[:, 1]).argsort(stable=True)
        pool = RunningPool(1, self.merge.out_features, places.dtype, places.device)
        for some in order.split(SQUARE * SQUARE):
            merged, scores = self._merge(self._found(some, rows, index[0], there[0]))
            pool.add(scores[0], merged[0])
        bag, scores = pool.result()
        return self._answer(bag, torch.empty_like(scores).index_copy_(1, order, scores)[None])

    @torch.jit.unused
    def _found(self, some: Tensor, features: Tensor, index: Tensor, there: Tensor) -> list[Tensor]:
        """``h`` of every layer, ``[1, m, i]`` each, of the tiles ``some`` ``[m]`` of a bag."""
        needed = [some]
        for _ in self.layers:
            last = needed[0]
            needed.insert(0, torch.cat([last, index[last][there[last]]]).unique())
        entered = features[needed[0], : self.in_channels].to(self.hidden.weight.dtype)
        rows = F.relu(self.hidden(entered))[None]
        found = [rows[:, torch.searchsorted(needed[0], some)]]
        for layer, taking, made in zip(self.layers, needed, needed[1:], strict=False):
            near = torch.searchsorted(taking, index[made]).clamp(max=len(taking) - 1)
            own = rows[:, torch.searchsorted(taking, made)]
            rows = layer(own, rows, near[None], there[made][None])
            found.append(rows if made is some else rows[:, torch.searchsorted(made, some)])
        return found

    def _answer(self, pooled: Tensor, scores: Tensor) -> dict[str, Tensor]:
        bag = F.relu(exact_matmul(pooled, self.rho.weight.T) + self.rho.bias)
        bag = dropped(bag, self.dropout, self.training)
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": torch.softmax(scores, dim=2),
            "attention_logits": scores,
            "bag": bag,
        }

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        return self._rows_and_scores(image, mask)[1]

    def _rows_and_scores(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is pooled, ``[b, n, i]``, and attention before softmax, ``[b, 1, n]``, ``-inf`` on padding."""
        rows = image.transpose(1, 2)
        places = rows[:, :, self.in_channels :].to(exact_dtype(self.hidden.weight.dtype))
        index, there = nearest_instances(places, mask, self.neighbours)
        rows = F.relu(self.hidden(rows[:, :, : self.in_channels].to(self.hidden.weight.dtype)))
        rows = dropped(rows, self.dropout, self.training)
        found = [rows]
        for layer in self.layers:
            rows = layer(rows, rows, index, there)
            found.append(rows)
        merged, scores = self._merge(found)
        return merged, scores if mask is None else scores.masked_fill(~mask[:, None], -float("inf"))

    def _merge(self, found: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The ``g_i`` and their scores from what all layers have found."""
        merged = dropped(F.relu(self.merge(torch.cat(found, dim=2))), self.dropout, self.training)
        tanh, sigmoid = self.gates(merged).chunk(2, dim=2)
        tanh = dropped(torch.tanh(tanh), self.dropout, self.training)
        sigmoid = dropped(torch.sigmoid(sigmoid), self.dropout, self.training)
        return merged, (exact_matmul(tanh * sigmoid, self.score.weight.T) + self.score.bias).transpose(1, 2)

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d + 2]`` of one of its instances, for the contract's tests."""
        return PatchGCN(10, 3, hidden_dim=4, layers=2, neighbours=3), (12,)


class _GraphLayer(nn.Module):
    """A graph convolution, normalised and added to what it took from unless it is the first."""

    def __init__(self, channels: int, residual: bool, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.convolution = _GraphConvolution(channels)
        self.norm = nn.LayerNorm(channels) if residual else None

    def forward(self, own: Tensor, rows: Tensor, index: Tensor, there: Tensor) -> Tensor:
        taken = self.convolution(own, rows, index, there)
        if self.norm is None:
            return taken
        return dropped(own + F.relu(self.norm(taken)), self.dropout, self.training)


class _GraphConvolution(nn.Module):
    """GENConv with softmax aggregation of a learned temperature; see :class:`PatchGCN`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1))
        self.widen = nn.Linear(channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(2 * channels)
        self.narrow = nn.Linear(2 * channels, channels, bias=False)

    def forward(self, own: Tensor, rows: Tensor, index: Tensor, there: Tensor) -> Tensor:
        """For tiles ``own`` ``[b, m, i]``, of whose neighbours ``index`` ``[b, m, k]`` is the place in ``rows``."""
        asked = index.flatten(1)[:, :, None].expand(-1, -1, rows.shape[2])
        messages = (F.relu(rows) + 1e-7).gather(1, asked).unflatten(1, [-1, index.shape[2]])
        messages = messages.to(exact_dtype(rows.dtype))
        evidence = (self.temperature * messages).masked_fill(~there[:, :, :, None], -float("inf"))
        highest = evidence.detach().amax(dim=2, keepdim=True).clamp(min=-3e38)  # of no neighbour it is -inf
        share = (evidence - highest).exp()
        taken = (share * messages).sum(dim=2) / share.sum(dim=2).clamp(min=1e-30)
        mixed = self.widen(own + taken.to(own.dtype))
        return self.narrow(F.relu(self.norm(mixed.to(rows.dtype))))
