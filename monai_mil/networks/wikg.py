"""WiKG: a dynamic graph of heads and tails with knowledge-aware attention (Li et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import LongBagNetwork, RunningPool, dropped, split_rows
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul
from monai_mil.networks.graph import is_recorded

HEADS_AT_ONCE = 8192
"""Heads of a long bag that search their neighbours together: all tails are made anew for each so many."""


class WiKG(LongBagNetwork):
    """Every instance, as a head, hears the ``k`` instances whose tails suit it best; the bag is read by attention.

    ``x_i = leaky(W f_i + b)``, drawn half-way to the bag's mean; head ``h_i = W_h x_i + b_h``, tail
    ``t_i = W_t x_i + b_t``; ``w_ij = h_i . t_j / sqrt(e)``; neighbours ``N_i`` are the ``k`` highest ``w_ij``, and
    ``p_ij`` their softmax. The edge is ``r_ij = p_ij t_j + (1 - p_ij) h_i``, its weight
    ``u_ij = t_j . tanh(h_i + r_ij)``, softmax over ``N_i``; ``n_i = sum_j u_ij t_j``;
    ``g_i = leaky(W_1 (h_i + n_i) + b_1) + leaky(W_2 (h_i * n_i) + b_2)``. Readout:
    ``a = softmax(v . leaky(V g_i + b_v))`` over the instances; ``z = LN(sum_i a_i g_i)``; ``logits = C z + c``.

    The released program sums ``t_j`` and the ``tanh`` each by itself before it multiplies the two; here ``u_ij`` is the
    paper's product. Its class reads the bag by attention, as here, its training script by the mean. An instance may be
    its own neighbour. Bags of fewer than ``k`` instances have as many neighbours as instances. Neighbours are searched
    in chunks of heads, so that no matrix of ``n`` by ``n`` is kept; time grows with the square of the bag. Evaluation
    keeps no heads and tails of a long bag either.

    The output holds ``logits``, ``attention`` and ``attention_logits`` of the readout and ``bag`` ``[b, hidden_dim]``.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: ``e``, width of heads and tails.
        neighbours: ``k``.
        dropout: on the ``g_i`` in training.

    Raises:
        ValueError: ``neighbours`` is below 1.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import WiKG
        >>> network = WiKG(in_channels=16, num_classes=2, hidden_dim=32).eval()
        >>> list(network(torch.randn(1, 16, 100), return_dict=True)["attention"].shape)
        [1, 1, 100]
    """

    score_parameters = ("hidden", "head", "tail", "sum", "product", "read", "score")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 512,
        neighbours: int = 6,
        dropout: float = 0.3,
    ) -> None:
        super().__init__(num_classes)
        if neighbours < 1:
            raise ValueError(f"a head needs at least one neighbour, got {neighbours}")
        self.neighbours = neighbours
        self.dropout = dropout
        self.chunk_rows = 1024
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.head = nn.Linear(hidden_dim, hidden_dim)
        self.tail = nn.Linear(hidden_dim, hidden_dim)
        self.sum = nn.Linear(hidden_dim, hidden_dim)
        self.product = nn.Linear(hidden_dim, hidden_dim)
        self.read = nn.Linear(hidden_dim, hidden_dim // 2)
        self.score = nn.Linear(hidden_dim // 2, 1)
        self.norm = nn.LayerNorm(hidden_dim)
        self.classifier = nn.Linear(hidden_dim, num_classes)

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        nodes, scores = self._nodes_and_scores(image, mask)
        return self._answer(exact_matmul(torch.softmax(scores, dim=2), nodes)[:, 0], scores)

    @torch.jit.unused
    def _answer_rows(self, rows: Tensor) -> dict[str, Tensor]:
        weight = self.hidden.weight
        total = torch.zeros(len(weight), dtype=exact_dtype(weight.dtype), device=weight.device)
        for part in split_rows(rows):
            total += self._leaky(part).sum(dim=0)
        mean = (total / len(rows)).to(weight.dtype)
        pool = RunningPool(1, len(weight), total.dtype, weight.device)
        for some in rows.split(HEADS_AT_ONCE):
            heads = self.head(0.5 * (self._leaky(some) + mean))
            place, there = self._search_in_parts(heads, rows, mean)
            for asked, at, are in zip(*(each.split(1024) for each in (heads, place, there)), strict=True):
                near = self.tail(0.5 * (self._leaky(rows[at.flatten()]) + mean)).unflatten(0, [len(at), -1])
                nodes, scores = self._read(asked[None], self._listen(asked[None], near[None], are[None]))
                pool.add(scores[0], nodes[0])
        bag, scores = pool.result()
        return self._answer(bag, scores[None])

    @torch.jit.unused
    def _search_in_parts(self, heads: Tensor, rows: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`_search` of ``heads`` ``[m, e]`` among the tails of all rows, which are made part by part."""
        best = torch.full(
            [len(heads), self.neighbours], -torch.inf, dtype=exact_dtype(heads.dtype), device=heads.device
        )
        place, start = torch.zeros_like(best, dtype=torch.long), 0
        for part in split_rows(rows):
            suits = exact_matmul(heads, self.tail(0.5 * (self._leaky(part) + mean)).T)
            found, at = suits.topk(min(self.neighbours, len(part)), dim=1)
            best, chosen = torch.cat([best, found], dim=1).topk(self.neighbours, dim=1)
            place = torch.cat([place, at + start], dim=1).gather(1, chosen)
            start += len(part)
        return place, best > -torch.inf

    def _answer(self, pooled: Tensor, scores: Tensor) -> dict[str, Tensor]:
        bag = self.norm(pooled.to(self.norm.weight.dtype))
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": torch.softmax(scores, dim=2),
            "attention_logits": scores,
            "bag": bag.to(exact_dtype(bag.dtype)),
        }

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        return self._nodes_and_scores(image, mask)[1]

    def _nodes_and_scores(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The ``g_i`` ``[b, n, e]``, 0 on padding, and the readout's scores ``[b, 1, n]``, ``-inf`` there."""
        rows = self._leaky(image.transpose(1, 2))
        real = torch.ones_like(rows[:, :, 0], dtype=torch.bool) if mask is None else mask
        rows = rows.masked_fill(~real[:, :, None], 0.0)
        mean = rows.sum(dim=1, keepdim=True) / real.sum(dim=1)[:, None, None]
        rows = 0.5 * (rows + mean.to(rows.dtype))
        heads, tails = self.head(rows), self.tail(rows)
        nodes, scores = self._read(heads, self._hear(heads, tails, real))
        return nodes.masked_fill(~real[:, :, None], 0.0), scores.masked_fill(~real[:, None], -float("inf"))

    def _leaky(self, features: Tensor) -> Tensor:
        return F.leaky_relu(self.hidden(features.to(self.hidden.weight.dtype)))

    def _read(self, heads: Tensor, heard: Tensor) -> tuple[Tensor, Tensor]:
        """The ``g_i`` ``[b, n, e]`` of heads and what they hear, and the readout's scores ``[b, 1, n]``."""
        nodes = F.leaky_relu(self.sum(heads + heard)) + F.leaky_relu(self.product(heads * heard))
        nodes = dropped(nodes, self.dropout, self.training)
        scores = self.score(F.leaky_relu(self.read(nodes))).transpose(1, 2)
        return nodes, scores.to(exact_dtype(scores.dtype))

    def _hear(self, heads: Tensor, tails: Tensor, real: Tensor) -> Tensor:
        """What every head hears from its neighbours, the ``n_i`` ``[b, n, e]``."""
        place, there = self._neighbours(heads, tails, real)
        near = tails.gather(1, place.flatten(1)[:, :, None].expand(-1, -1, tails.shape[2]))
        return self._listen(heads, near.unflatten(1, [place.shape[1], place.shape[2]]), there)

    def _listen(self, heads: Tensor, near: Tensor, there: Tensor) -> Tensor:
        """:meth:`_hear` of the neighbours' tails ``[b, n, k, e]``."""
        suits = self._among(exact_matmul(near, heads[:, :, :, None])[:, :, :, 0] * heads.shape[2] ** -0.5, there)
        suits = suits[:, :, :, None].to(heads.dtype)
        asked = heads[:, :, None]
        edge = suits * near + (1 - suits) * asked
        weight = exact_matmul(near[:, :, :, None], torch.tanh(asked + edge)[:, :, :, :, None])[:, :, :, 0, 0]
        return exact_matmul(self._among(weight, there)[:, :, None], near)[:, :, 0].to(heads.dtype)

    def _among(self, scores: Tensor, there: Tensor) -> Tensor:
        """Softmax over the neighbours that there are ``[b, n, k]``, the first of which always is."""
        return torch.softmax(scores.masked_fill(~there, -float("inf")), dim=2)

    def _neighbours(self, heads: Tensor, tails: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Places of the tails that suit every head best, best first, and which of them there are, ``[b, n, k]``."""
        heads, tails = heads.detach(), tails.detach()
        # k columns that nobody would choose let a bag of fewer instances have k neighbours too.
        empty = torch.zeros_like(real[:, :1]).expand(-1, self.neighbours)
        columns = torch.cat([real, empty], dim=1)
        tails = F.pad(tails, [0, 0, 0, self.neighbours]).transpose(1, 2)
        if torch.jit.is_scripting() or is_recorded():
            place, there = self._search(heads, tails, columns)
        else:
            found = [self._search(part, tails, columns) for part in heads.split(self.chunk_rows, dim=1)]
            place, there = torch.cat([each[0] for each in found], dim=1), torch.cat([each[1] for each in found], dim=1)
        return torch.where(there, place, torch.zeros_like(place)), there

    def _search(self, heads: Tensor, tails: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        suits = exact_matmul(heads, tails).masked_fill(~columns[:, None], -float("inf"))
        best, place = suits.topk(self.neighbours, dim=2)
        return place, best > -float("inf")

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        return WiKG(12, 3, hidden_dim=16, neighbours=4), (12,)
