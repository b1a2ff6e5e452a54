"""ILRA: iterative low-rank attention (Xiang and Zhang, ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import ChunkedAttentionNetwork, ReadBag, RunningPool
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul


class ILRA(ChunkedAttentionNetwork):
    """Tiles ask a few latent vectors that have asked the tiles, layer by layer; a learned vector pools the result.

    One attention block takes ``m`` askers ``p`` and ``n`` rows ``x``: ``q = Wq p + bq``; ``k = Wk x + bk``;
    ``v = Wv x + bv``; ``a = softmax((Uq q + cq) (Uk k + ck)^T / sqrt(i / h))`` of every head;
    ``o = q + Uo (a (Uv v + cv)) + co``; ``o = o + relu(Wo o + bo)``; and, if it is gated, ``o * silu(Wg p + bg)``.

    A layer (the paper's GAB, Eq. 16) has ``r`` latent vectors ``L`` of its own: ``H = gated(L, X)``, then
    ``X = gated(X, H)``, which costs ``n r`` in place of ``n n`` products. Behind the layers ``z = block(S, X)`` with
    one learned vector ``S`` (the paper's non-local pooling), and ``logits = C z + c``. The order of the tiles does
    not matter. Of a long bag, or one in chunks, evaluation keeps no ``X``: each layer reads the features anew.

    The output holds ``logits``, ``attention`` and ``attention_logits`` of ``S`` to the tiles, one of every head, and
    ``bag`` ``[b, hidden_dim]``. A tile's score is its attention, averaged over heads.

    As the authors' program has it, the projections ``W`` and those of the heads ``U`` follow each other. There the
    pooling has ``r`` vectors ``S`` too, but its shapes fit one only, which is the default here and there.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: ``i``, width of a row behind the first layer.
        heads: ``h``, a divisor of ``hidden_dim``.
        layers: how many.
        rank: ``r``.
        norm: normalise (LayerNorm) ``o`` behind both of its sums, as the program's configuration for CAMELYON16 does.

    Raises:
        ValueError: ``heads`` does not divide ``hidden_dim``.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import ILRA
        >>> network = ILRA(in_channels=16, num_classes=2, hidden_dim=32, heads=4).eval()
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> list(output["attention"].shape)
        [1, 4, 100]
    """

    score_parameters = ("layers", "seed", "pool.query", "pool.key", "pool.head_query", "pool.head_key")
    rereads = True

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 256,
        heads: int = 8,
        layers: int = 2,
        rank: int = 1,
        norm: bool = True,
    ) -> None:
        super().__init__(num_classes)
        if hidden_dim % heads:
            raise ValueError(f"{heads} heads do not divide hidden_dim {hidden_dim}")
        widths = [in_channels, *[hidden_dim] * (layers - 1)]
        self.layers = nn.ModuleList([_LowRankLayer(width, hidden_dim, heads, rank, norm) for width in widths])
        self.seed = nn.Parameter(torch.empty(1, 1, hidden_dim))
        nn.init.xavier_uniform_(self.seed)
        self.pool = _AskingBlock(hidden_dim, hidden_dim, hidden_dim, heads, norm, gated=False)
        self.classifier = nn.Linear(hidden_dim, num_classes)

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        rows = self._rows(image, mask)
        asked = self.pool.query(self.seed).expand(rows.shape[0], -1, -1)
        scores = self.pool.scores(asked, rows, mask)
        return self._answer(self.pool.answer(asked, rows, scores)[:, 0], scores[:, :, 0])

    @torch.jit.unused
    def _answer_bag(self, read: ReadBag) -> dict[str, Tensor]:
        latents: list[Tensor] = []
        for layer in cast("list[_LowRankLayer]", self.layers):
            pooled, _ = self._pool(layer.gather, layer.latent, latents, read)
            latents.append(layer.gather.gated(layer.gather.answer_pooled(layer.latent, pooled), layer.latent))
        pooled, scores = self._pool(self.pool, self.seed, latents, read)
        return self._answer(self.pool.answer_pooled(self.seed, pooled)[:, 0], scores[None])

    @torch.jit.unused
    def _pool(self, block: _AskingBlock, askers: Tensor, latents: list[Tensor], read: ReadBag) -> tuple[Tensor, Tensor]:
        """The rows behind as many layers as there are ``latents``, pooled by a block's attention, and its scores."""
        probes, offsets = block.probes(askers)
        pool = RunningPool(len(probes), probes.shape[1], probes.dtype, probes.device)
        for part in read():
            rows = part.to(self.seed.dtype)[None]
            for layer, latent in zip(cast("list[_LowRankLayer]", self.layers), latents, strict=False):
                rows = layer.spread(rows, latent, None)
            pool.add(exact_matmul(probes, rows[0].T) + offsets[:, None], rows[0])
        return pool.result()

    def _answer(self, bag: Tensor, scores: Tensor) -> dict[str, Tensor]:
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": torch.softmax(scores, dim=2),
            "attention_logits": scores,
            "bag": bag.to(exact_dtype(bag.dtype)),
        }

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        rows = self._rows(image, mask)
        return self.pool.scores(self.pool.query(self.seed).expand(rows.shape[0], -1, -1), rows, mask)[:, :, 0]

    def _rows(self, image: Tensor, mask: Tensor | None) -> Tensor:
        rows = image.transpose(1, 2).to(self.seed.dtype)
        for layer in self.layers:
            rows = layer(rows, mask)
        return rows

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        return ILRA(12, 3, hidden_dim=8, heads=2, rank=3, norm=True), (12,)


class _LowRankLayer(nn.Module):
    """The paper's GAB: ``[b, n, width]`` to ``[b, n, hidden_dim]`` by way of ``rank`` latent vectors."""

    def __init__(self, width: int, hidden_dim: int, heads: int, rank: int, norm: bool) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.empty(1, rank, hidden_dim))
        nn.init.xavier_uniform_(self.latent)
        self.gather = _AskingBlock(hidden_dim, width, hidden_dim, heads, norm, gated=True)
        self.spread = _AskingBlock(width, hidden_dim, hidden_dim, heads, norm, gated=True)

    def forward(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        latent = self.gather(self.latent.expand(rows.shape[0], -1, -1), rows, mask)
        return self.spread(rows, latent, None)


class _AskingBlock(nn.Module):
    """Attention of askers ``[b, m, p]`` to rows ``[b, n, x]``: ``[b, m, hidden_dim]``; see :class:`ILRA`."""

    def __init__(self, asker_dim: int, row_dim: int, hidden_dim: int, heads: int, norm: bool, gated: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(asker_dim, hidden_dim)
        self.key = nn.Linear(row_dim, hidden_dim)
        self.value = nn.Linear(row_dim, hidden_dim)
        self.head_query = nn.Linear(hidden_dim, hidden_dim)
        self.head_key = nn.Linear(hidden_dim, hidden_dim)
        self.head_value = nn.Linear(hidden_dim, hidden_dim)
        self.head_output = nn.Linear(hidden_dim, hidden_dim)
        self.feed = nn.Linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim) if norm else None
        self.feed_norm = nn.LayerNorm(hidden_dim) if norm else None
        self.gate = nn.Linear(asker_dim, hidden_dim) if gated else None

    def forward(self, askers: Tensor, rows: Tensor, mask: Tensor | None) -> Tensor:
        asked = self.query(askers)
        return self.gated(self.answer(asked, rows, self.scores(asked, rows, mask)), askers)

    def gated(self, result: Tensor, askers: Tensor) -> Tensor:
        """The result, weighed by what the askers let through."""
        return result if self.gate is None else result * F.silu(self.gate(askers))

    def scores(self, asked: Tensor, rows: Tensor, mask: Tensor | None) -> Tensor:
        """Attention before softmax ``[b, h, m, n]``, ``-inf`` on padding, float32 or better."""
        query, key = self._by_head(self.head_query(asked)), self._by_head(self.head_key(self.key(rows)))
        scores = exact_matmul(query, key.transpose(2, 3)) * query.shape[3] ** -0.5
        return scores if mask is None else scores.masked_fill(~mask[:, None, None], -float("inf"))

    def answer(self, asked: Tensor, rows: Tensor, scores: Tensor) -> Tensor:
        """What the askers make of the rows with these scores, ``[b, m, hidden_dim]``."""
        value = self._by_head(self.head_value(self.value(rows)))
        return self._feed(asked, exact_matmul(torch.softmax(scores, dim=3), value).transpose(1, 2).flatten(2))

    @torch.jit.unused
    def probes(self, askers: Tensor) -> tuple[Tensor, Tensor]:
        """What gives the scores where it meets rows as they are: ``[h m, x]`` and what is added to it, ``[h m]``.

        Both projections of the rows are folded into the question, so that a row costs ``h m`` products of its width.
        """
        asked = self._by_head(self.head_query(self.query(askers)))[0]  # [h, m, e]
        asked = asked * asked.shape[2] ** -0.5
        folded = exact_matmul(asked, self.head_key.weight.unflatten(0, [self.heads, -1]))  # [h, m, i]
        offsets = exact_matmul(folded, self.key.bias[:, None])
        offsets = offsets + exact_matmul(asked, self.head_key.bias.unflatten(0, [self.heads, -1])[:, :, None])
        return exact_matmul(folded, self.key.weight).flatten(0, 1), offsets.flatten()

    @torch.jit.unused
    def answer_pooled(self, askers: Tensor, pooled: Tensor) -> Tensor:
        """:meth:`answer` from the rows summed with each attention, ``[h m, x]``, which sums to 1."""
        value = exact_matmul(pooled, self.value.weight.T) + self.value.bias
        value = value.unflatten(0, [self.heads, -1])  # [h, m, i]
        read = exact_matmul(value, self.head_value.weight.unflatten(0, [self.heads, -1]).transpose(1, 2))
        read = read + self.head_value.bias.unflatten(0, [self.heads, -1])[:, None]
        return self._feed(self.query(askers), read.transpose(0, 1).flatten(1)[None])

    def _feed(self, asked: Tensor, read: Tensor) -> Tensor:
        """Behind the attention: from what the askers read, ``[b, m, i]``, to the block's result."""
        result = asked + self.head_output(read.to(self.feed.weight.dtype))
        if self.norm is not None:
            result = self.norm(result.to(self.feed.weight.dtype))
        result = result + F.relu(self.feed(result.to(self.feed.weight.dtype)))
        return result if self.feed_norm is None else self.feed_norm(result.to(self.feed.weight.dtype))

    def _by_head(self, rows: Tensor) -> Tensor:
        return rows.unflatten(2, [self.heads, -1]).transpose(1, 2)
