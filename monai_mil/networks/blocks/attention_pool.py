"""Attention pooling over the rows of one bag, in chunks: the speed of its matrix products, little memory.

Both directions walk the bag in chunks of rows small enough for the cache. Training keeps the hidden rows and the gate
activations and nothing else; evaluation keeps one chunk (softmax in its online form). Attention is always computed in
float32 or better; the large products run in the autocast type where autocast is on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from monai_mil.networks.blocks.columns import write_columns
from monai_mil.networks.blocks.dropping import drop_, drop_factor
from monai_mil.networks.blocks.padding import among_padding
from monai_mil.networks.contract import exact_dtype, exact_matmul

CHUNK_ROWS = {"cpu": 2048, "cuda": 65536}
"""Rows worked on at once: a chunk's activations stay in the cache of a CPU core and fill a GPU."""


class PoolWeights(NamedTuple):
    """The parameters of gated or plain attention pooling.

    ``hidden = relu(x hidden_weight^T + hidden_bias)``; ``gates = hidden gate_weight^T + gate_bias``, where the first
    ``a`` columns pass a tanh and, if gated, the other ``a`` a sigmoid; ``scores = (tanh * sigmoid) score_weight^T +
    score_bias``.
    """

    hidden_weight: Tensor  # [i, d]
    hidden_bias: Tensor  # [i]
    gate_weight: Tensor  # [a or 2a, i]
    gate_bias: Tensor
    score_weight: Tensor  # [h, a]
    score_bias: Tensor  # [h]

    def cast(self, dtype: torch.dtype) -> PoolWeights:
        """The large products' parameters as ``dtype``, those of the scores as float32 or better."""
        exact = exact_dtype(self.score_weight.dtype)
        return PoolWeights(*(tensor.to(dtype) for tensor in self[:4]), *(tensor.to(exact) for tensor in self[4:]))


def attention_pool(rows: Tensor, weights: PoolWeights, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """The attention-weighted mean of the instances of one bag, and their attention scores.

    Args:
        rows: instances, ``[n, d]``, any strides and any floating type.
        weights: the parameters.
        dropout: probability of zeroing a hidden value; 0 outside training.

    Returns:
        The bag vectors ``[h, i]`` and the attention scores before softmax ``[h, n]``, both float32 or better.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (rows, *weights)):
        return _AttentionPool.apply(rows, dropout, compute_dtype(weights.hidden_weight), *weights)
    return stream_pool(split_rows(rows), weights, dropout)


def split_rows(rows: Tensor) -> Iterator[Tensor]:
    """The chunks of a bag, ``[m, d]`` views of ``rows`` in order."""
    step = CHUNK_ROWS.get(rows.device.type, 65536)
    for start in range(0, rows.shape[0], step):
        yield rows[start : start + step]


def pool_bags(
    image: Tensor, mask: Tensor | None, pool: Callable[[Iterable[Tensor]], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Pool bag by bag over the real instances, in chunks of them.

    Args:
        image: ``[b, d, n]``.
        mask: True where an instance is real, ``[b, n]``, or None.
        pool: from the chunks ``[m, d]`` of one bag to its vectors ``[h, i]`` and scores ``[h, n]``.

    Returns:
        The bags' vectors ``[b, h, i]`` and their scores ``[b, h, n]``, ``-inf`` on padding.
    """
    bags, scores = [], []
    for index, rows in enumerate(image.mT):
        bag, found = pool(split_rows(rows if mask is None else rows[mask[index]]))
        bags.append(bag)
        scores.append(found if mask is None else among_padding(found, mask[index]))
    return torch.stack(bags), torch.stack(scores)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """The autocast type where autocast is on, else the parameters' type (float16 features are widened)."""
    if torch.is_autocast_enabled(weight.device.type) and weight.dtype != torch.float64:
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


@torch.no_grad()
def stream_pool(chunks: Iterable[Tensor], weights: PoolWeights, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
    """:func:`attention_pool` of a bag that arrives in chunks ``[m, d]``, without gradients; holds one chunk at a time.

    Raises:
        ValueError: there was no row.
    """
    dtype, exact = compute_dtype(weights.hidden_weight), exact_dtype(weights.score_weight.dtype)
    pool = RunningPool(len(weights.score_weight), len(weights.hidden_weight), exact, weights.score_weight.device)
    cast = weights.cast(dtype)
    for rows in chunks:
        with torch.autocast(rows.device.type, enabled=False):
            hidden, gates = _activations(rows.to(dtype), cast, dropout)
            pool.add(_scores(gates, cast).T, hidden)
    return pool.result()


class RunningPool:
    """Softmax-weighted mean of rows that arrive in chunks, in the softmax's online form.

    Args:
        heads: ``h``, number of attention distributions.
        width: ``i``, of a row.
        dtype: of scores and result, float32 or better.
        device: where rows and scores lie.
    """

    def __init__(self, heads: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.largest = torch.full((heads, 1), -torch.inf, dtype=dtype, device=device)
        self.total = torch.zeros(heads, 1, dtype=dtype, device=device)
        self.pooled = torch.zeros(heads, width, dtype=dtype, device=device)
        self.seen = torch.empty(heads, 65536, dtype=dtype, device=device)
        self.count = 0

    def add(self, scores: Tensor, rows: Tensor) -> None:
        """Take in a chunk: scores ``[h, m]`` of the pool's type, ``-inf`` for a row without weight, rows ``[m, i]``."""
        lowest = torch.finfo(scores.dtype).min  # ``-inf`` from itself would be no number
        bound = torch.maximum(self.largest, scores.amax(dim=1, keepdim=True)).clamp(min=lowest)
        shrink, share = self._weights(scores, bound)
        self.total = self.total * shrink + share.sum(dim=1, keepdim=True)
        self.pooled = self.pooled * shrink + exact_matmul(share, rows)
        self.largest = bound
        self.seen = write_columns(self.seen, self.count, scores)
        self.count += scores.shape[1]

    def _weights(self, scores: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        """By what all before is multiplied ``[h, 1]``, and what each row of a chunk weighs, as ``bound`` is largest."""
        return (self.largest - bound).exp(), (scores - bound).exp()

    def result(self) -> tuple[Tensor, Tensor]:
        """The pooled rows ``[h, i]``, 0 where no row had weight, and all scores ``[h, n]``.

        Raises:
            ValueError: there was no row.
        """
        if self.count == 0:
            raise ValueError("a bag without instances has no prediction")
        total = self.total.clamp(min=torch.finfo(self.total.dtype).tiny)
        return self.pooled / total, self.seen[:, : self.count].clone()


class _AttentionPool(torch.autograd.Function):
    """The differentiable form: saves the activations ``hidden`` ``[n, i]`` and ``gates`` ``[n, a or 2a]``."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, dropout: float, dtype: torch.dtype, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        exact = exact_dtype(parameters[0].dtype)
        with torch.autocast(rows.device.type, enabled=False):
            cast = PoolWeights(*parameters).cast(dtype)
            hidden = torch.empty(len(rows), len(cast.hidden_weight), dtype=dtype, device=rows.device)
            gates = torch.empty(len(rows), len(cast.gate_weight), dtype=dtype, device=rows.device)
            scores = torch.empty(len(rows), len(cast.score_weight), dtype=exact, device=rows.device)
            start = 0
            for chunk in split_rows(rows):
                part = slice(start, start + len(chunk))
                _activations(chunk.to(dtype), cast, dropout, hidden[part], gates[part])
                scores[part] = _scores(gates[part], cast)
                start += len(chunk)
            scores = scores.T.contiguous()
            bag = _weighted_sum(scores.softmax(dim=1), hidden)
        ctx.save_for_backward(rows, hidden, gates, scores, bag, *parameters)
        ctx.dropout = dropout
        return bag, scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_bag: Tensor, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, gates, scores, bag, *parameters = ctx.saved_tensors
        dtype, exact = hidden.dtype, scores.dtype
        with torch.autocast(rows.device.type, enabled=False):
            weights = PoolWeights(*parameters).cast(dtype)
            sums = [torch.zeros_like(p, dtype=exact) for p in parameters]
            grad_rows = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
            attention = scores.softmax(dim=1)
            level = (grad_bag * bag).sum(dim=1)
            start = 0
            for chunk in split_rows(rows):
                part = slice(start, start + len(chunk))
                share = attention[:, part].T
                hidden_part = hidden[part]
                d_score = share * (hidden_part.to(exact) @ grad_bag.T - level) + grad_scores[:, part].T
                d_gates = _gate_gradient(d_score, gates[part], weights, sums).to(dtype)
                d_hidden = torch.addmm((share @ grad_bag).to(dtype), d_gates, weights.gate_weight)
                d_hidden = torch.ops.aten.threshold_backward(d_hidden, hidden_part, 0)
                if ctx.dropout:
                    d_hidden *= drop_factor(rows, ctx.dropout)
                _add_product(sums[2], d_gates, hidden_part)
                sums[3] += d_gates.sum(dim=0, dtype=exact)
                _add_product(sums[0], d_hidden, chunk.to(dtype))
                sums[1] += d_hidden.sum(dim=0, dtype=exact)
                if grad_rows is not None:
                    grad_rows[part] = d_hidden @ weights.hidden_weight
                start += len(chunk)
        return grad_rows, None, None, *(s.to(p.dtype) for s, p in zip(sums, parameters, strict=True))


def _activations(
    rows: Tensor, weights: PoolWeights, dropout: float, hidden: Tensor | None = None, gates: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Hidden rows and gate activations of a chunk, written into the tensors given."""
    hidden = torch.addmm(weights.hidden_bias, rows, weights.hidden_weight.T, out=hidden).relu_()
    if dropout:
        drop_(hidden, dropout)
    gates = torch.addmm(weights.gate_bias, hidden, weights.gate_weight.T, out=gates)
    width = weights.score_weight.shape[1]
    gates[:, :width].tanh_()
    gates[:, width:].sigmoid_()
    return hidden, gates


def _gated(gates: Tensor, width: int, exact: torch.dtype) -> Tensor:
    """``tanh`` or ``tanh * sigmoid`` of a chunk, ``[m, a]``."""
    tanh, sigmoid = gates[:, :width].to(exact), gates[:, width:]
    return tanh * sigmoid if sigmoid.shape[1] else tanh


def _scores(gates: Tensor, weights: PoolWeights) -> Tensor:
    weight = weights.score_weight
    return torch.addmm(weights.score_bias, _gated(gates, weight.shape[1], weight.dtype), weight.T)


def _gate_gradient(d_score: Tensor, gates: Tensor, weights: PoolWeights, sums: list[Tensor]) -> Tensor:
    """Gradient before the tanh and the sigmoid, ``[m, a or 2a]``; adds that of the scores' parameters to ``sums``."""
    width, exact = weights.score_weight.shape[1], d_score.dtype
    tanh, sigmoid = gates[:, :width].to(exact), gates[:, width:].to(exact)
    d_gated = d_score @ weights.score_weight
    sums[4] += d_score.T @ _gated(gates, width, exact)
    sums[5] += d_score.sum(dim=0)
    if not sigmoid.shape[1]:
        return torch.ops.aten.tanh_backward(d_gated, tanh)
    d_gates = torch.empty(gates.shape, dtype=exact, device=gates.device)
    d_gates[:, :width] = torch.ops.aten.tanh_backward(d_gated * sigmoid, tanh)
    d_gates[:, width:] = torch.ops.aten.sigmoid_backward(d_gated.mul_(tanh), sigmoid)
    return d_gates


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left^T right``, accumulated in the type of ``total``."""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right


def _weighted_sum(attention: Tensor, hidden: Tensor) -> Tensor:
    """``attention @ hidden`` in the type of ``attention``, without a wider copy of all of ``hidden``."""
    if hidden.dtype == attention.dtype:
        return attention @ hidden
    total = attention.new_zeros(len(attention), hidden.shape[1])
    start = 0
    for chunk in split_rows(hidden):
        total.addmm_(attention[:, start : start + len(chunk)], chunk.to(attention.dtype))
        start += len(chunk)
    return total
