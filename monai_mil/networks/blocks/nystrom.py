"""Nystroem attention (Xiong et al., AAAI 2021) as TransMIL and the Integrated Attention Transformer use it.

The approximation of ``softmax(Q K^T) V`` is ``A1 Z (A3 V)`` with ``A1 = softmax(Q K~^T)``, ``A3 = softmax(Q~ K^T)`` and
``Z`` the pseudo-inverse of ``A2 = softmax(Q~ K~^T)``, where ``Q~`` and ``K~`` are ``m`` landmarks: means of consecutive
tokens. Bracketed from the right it is two ordinary attentions, ``A3 V`` and then ``A1 (Z A3 V)``, none of which keeps
a matrix of ``n`` by ``m``: memory is linear in the tokens, whatever the number of landmarks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from monai_mil.networks.blocks.attention_pool import compute_dtype
from monai_mil.networks.blocks.dropping import dropped
from monai_mil.networks.blocks.token_mix import mix_tokens
from monai_mil.networks.blocks.token_sequence import Rows
from monai_mil.networks.contract import exact_dtype, exact_matmul
from monai_mil.networks.graph import is_exported, is_recorded

CHUNK_TOKENS = 8192
"""Longer sequences are worked on in chunks of so many tokens where no gradient is wanted."""

MOST_ITERATIONS = 8
"""Rounding grows 3.25 times with each: some 1e-5 of the result after the six of the papers, and all of it after 16."""


class NystromAttention(nn.Module):
    """Nystroem self-attention plus a depthwise convolution of the values along the tokens.

    Zero tokens are put in front until the landmarks divide their number; as in the reference they take part, so that
    the result depends on the length of the sequence, and on its order. Masks have no place here: the caller takes
    padding out first. Bags of a batch do not influence each other (the reference scales the pseudo-inverse's start by
    the largest sums of the whole batch; here they are those of one bag).

    Args:
        channels: ``D``.
        heads: ``h``, a divisor of ``D``.
        landmarks: ``m``.
        iterations: of the pseudo-inverse, at most 8.
        kernel: taps of the convolution, odd.
        dropout: on the result in training.
        mask_padding: put no zeros in front; landmarks are then the means of nearly equal groups, and as many as there
            are tokens where those are fewer than ``m``. The reference has no such thing. Cannot be exported to ONNX.
        checkpoint: of the pseudo-inverse's steps keep the results only while training, and do each a second time.

    Raises:
        ValueError: ``heads`` does not divide ``channels``, or ``iterations`` is not from 1 to 8.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        landmarks: int = 256,
        iterations: int = 6,
        kernel: int = 33,
        dropout: float = 0.0,
        mask_padding: bool = False,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"heads must divide the channels of the attention, got {heads} and {channels}")
        if not 1 <= iterations <= MOST_ITERATIONS:
            raise ValueError(f"iterations of the pseudo-inverse must be 1 to {MOST_ITERATIONS}, got {iterations}")
        self.heads = heads
        self.landmarks = landmarks
        self.iterations = iterations
        self.dropout = dropout
        self.mask_padding = mask_padding
        self.checkpoint = checkpoint
        self.project = nn.Linear(channels, 3 * channels, bias=False)
        self.output = nn.Linear(channels, channels)
        self.mix = nn.Conv1d(heads, heads, kernel, padding=kernel // 2, groups=heads, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[b, n, D]`` to the same."""
        if torch.jit.is_scripting() or is_recorded() or torch.is_grad_enabled():
            return self._whole(tokens)
        return self._whole(tokens) if self._is_short(tokens) else self._in_chunks(tokens)

    @torch.jit.unused
    def _is_short(self, tokens: Tensor) -> bool:
        return tokens.shape[1] <= CHUNK_TOKENS or self.mask_padding

    def _whole(self, tokens: Tensor) -> Tensor:
        count = tokens.shape[1]
        tokens, pad = self._pad(tokens)
        query, key, value = self._split(self.project(tokens), 3).unbind(0)
        query_marks, key_marks = self._marks(query), self._marks(key)
        gathered = F.scaled_dot_product_attention(query_marks, key, value)
        read = self._through_landmarks(query_marks, key_marks, gathered)
        mixed = F.scaled_dot_product_attention(query, key_marks, read.to(query.dtype)) + self._mix(value)
        out = self._out(mixed)
        if torch.jit.is_scripting() or not is_exported():
            return out[:, pad:]
        return out.index_select(1, torch.arange(count, device=out.device) + pad)

    @torch.jit.unused
    def _in_chunks(self, tokens: Tensor) -> Tensor:
        """The same, without gradients, holding the projections of one chunk; values are projected twice."""
        count = tokens.shape[1]
        part = self.stream(lambda start, stop: tokens[:, start:stop], count)
        result = torch.empty(tokens.shape, dtype=compute_dtype(self.output.weight), device=tokens.device)
        for start in range(0, count, CHUNK_TOKENS):
            stop = min(start + CHUNK_TOKENS, count)
            result[:, start:stop] = part(start, stop)
        return result

    @torch.jit.unused
    def stream(self, tokens: Rows, count: int) -> Rows:
        """``forward`` of a sequence that is never held, in evaluation: what gives its result part by part.

        The sequence is asked for twice, from its beginning to its end, and with each part of the result once more for
        that part and what the convolution sees around it. Not for ``mask_padding``.

        Args:
            tokens: gives its parts.
            count: its length.
        """
        pad, reach = -count % self.landmarks, self.mix.weight.shape[2] // 2
        query_weight, _, value_weight = self.project.weight.chunk(3)
        query_marks, key_marks = self._stream_marks(tokens, count, pad)
        gathered = self._stream_gathered(tokens, count, pad, query_marks)
        read = self._through_landmarks(query_marks, key_marks, gathered)

        def part(start: int, stop: int) -> Tensor:
            length = stop - start
            near = _padded_rows(tokens, count, pad, pad + start - reach, pad + stop + reach)
            query = self._split(F.linear(near.narrow(1, reach, length), query_weight), 1)[0]
            mixed = F.scaled_dot_product_attention(query, key_marks, read.to(query.dtype))
            mixed += self._mix(self._split(F.linear(near, value_weight), 1)[0]).narrow(2, reach, length)
            return self._out(mixed)

        return part

    def _stream_marks(self, tokens: Rows, count: int, pad: int) -> tuple[Tensor, Tensor]:
        """Landmarks of queries and of keys, ``[b, h, m, e]``: projections of those of the tokens themselves."""
        end = pad + count
        group = end // self.landmarks
        step = group * max(1, CHUNK_TOKENS // group)
        like = tokens(0, 1)
        marks = like.new_empty([like.shape[0], self.landmarks, like.shape[2]])  # see write_columns
        for start in range(0, end, step):
            rows = _padded_rows(tokens, count, pad, start, min(start + step, end))
            marks[:, start // group : (start + rows.shape[1]) // group] = rows.unflatten(1, [-1, group]).mean(dim=2)
        weights = self.project.weight.chunk(3)[:2]
        query_marks, key_marks = (self._split(F.linear(marks, weight), 1)[0] for weight in weights)
        return query_marks, key_marks

    def _stream_gathered(self, tokens: Rows, count: int, pad: int, query_marks: Tensor) -> Tensor:
        """``A3 V``, ``[b, h, m, e]``, with the softmax over the tokens in its online form."""
        end, scale = pad + count, query_marks.shape[3] ** -0.5
        largest = query_marks.new_full([*query_marks.shape[:3], 1], -torch.inf, dtype=exact_dtype(query_marks.dtype))
        total, gathered = torch.zeros_like(largest), torch.zeros_like(query_marks, dtype=largest.dtype)
        for start in range(0, end, CHUNK_TOKENS // 4):
            rows = _padded_rows(tokens, count, pad, start, min(start + CHUNK_TOKENS // 4, end))
            key, value = self._split(F.linear(rows, self.project.weight[rows.shape[2] :]), 2).unbind(0)
            scores = exact_matmul(query_marks, key.transpose(2, 3)).mul_(scale)
            bound = torch.maximum(largest, scores.amax(dim=3, keepdim=True))
            share, shrink = scores.sub_(bound).exp_(), (largest - bound).exp()
            total = total * shrink + share.sum(dim=3, keepdim=True)
            gathered = gathered * shrink + exact_matmul(share, value)
            largest = bound
        return gathered / total

    def row(self, tokens: Tensor, place: int) -> Tensor:
        """The result of one token, for less than half of the work: ``forward(tokens)[:, place]``.

        Queries of the others are needed as landmarks only, and the mean of projections is the projection of the mean.

        Args:
            tokens: ``[b, n, D]``.
            place: of the token, from 0.

        Returns:
            ``[b, D]``.
        """
        if torch.jit.is_scripting() or is_recorded() or torch.is_grad_enabled():
            return self._whole_row(tokens, place)
        return self._whole_row(tokens, place) if self._is_short(tokens) else self._row_in_chunks(tokens, place)

    def _whole_row(self, tokens: Tensor, place: int) -> Tensor:
        tokens, pad = self._pad(tokens)
        reach = self.mix.weight.shape[2] // 2
        around = torch.arange(2 * reach + 1, device=tokens.device) + (place + pad)
        query_weight = self.project.weight[: tokens.shape[2]]
        query_marks = self._split(F.linear(self._marks(tokens[:, None])[:, 0], query_weight), 1)[0]
        query = self._split(F.linear(tokens.index_select(1, around[:1]), query_weight), 1)[0]
        key, value = self._split(F.linear(tokens, self.project.weight[tokens.shape[2] :]), 2).unbind(0)
        key_marks = self._marks(key)
        gathered = F.scaled_dot_product_attention(query_marks, key, value)
        near = F.pad(value, [0, 0, reach, reach]).index_select(2, around)
        return self._row_from(query, query_marks, key_marks, gathered, near)

    @torch.jit.unused
    def _row_in_chunks(self, tokens: Tensor, place: int) -> Tensor:
        return self.stream_row(lambda start, stop: tokens[:, start:stop], tokens.shape[1], place)

    @torch.jit.unused
    def stream_row(self, tokens: Rows, count: int, place: int) -> Tensor:
        """:meth:`row` of a sequence that is never held, see :meth:`stream`."""
        pad, reach = -count % self.landmarks, self.mix.weight.shape[2] // 2
        query_weight, _, value_weight = self.project.weight.chunk(3)
        query_marks, key_marks = self._stream_marks(tokens, count, pad)
        gathered = self._stream_gathered(tokens, count, pad, query_marks)
        near = _padded_rows(tokens, count, pad, place + pad - reach, place + pad + reach + 1)
        query = self._split(F.linear(near.narrow(1, reach, 1), query_weight), 1)[0]
        near = self._split(F.linear(near, value_weight), 1)[0]
        return self._row_from(query, query_marks, key_marks, gathered, near)

    def _row_from(
        self, query: Tensor, query_marks: Tensor, key_marks: Tensor, gathered: Tensor, near: Tensor
    ) -> Tensor:
        between = _attention(query_marks, key_marks)
        share = row_times_pseudo_inverse(_attention(query, key_marks), between, self.iterations, self.checkpoint)
        mixed = exact_matmul(share, gathered).to(near.dtype)
        mixed = mixed + (near * self.mix.weight[:, 0, :, None]).sum(dim=2, keepdim=True)
        return self._out(mixed)[:, 0]

    def scores(self, tokens: Tensor, place: int) -> Tensor:
        """Exact scores of one token's attention to all, before softmax and without approximation: ``[b, h, n]``.

        Args:
            tokens: ``[b, n, D]``.
            place: of the token that asks, from 0.
        """
        return exact_matmul(self.probe(tokens[:, place : place + 1]), tokens.transpose(1, 2))

    def probe(self, token: Tensor) -> Tensor:
        """What gives a token's :meth:`scores` when it meets the others: ``[b, 1, D]`` to ``[b, h, D]``.

        The key's weight is folded into the query: h rows meet the tokens instead of D.
        """
        width = token.shape[2]
        asked = exact_matmul(token, self.project.weight[:width].T)
        asked = asked.unflatten(2, [self.heads, -1]).transpose(1, 2) * (width // self.heads) ** -0.5
        return exact_matmul(asked, self.project.weight[width : 2 * width].unflatten(0, [self.heads, -1])).squeeze(2)

    def _pad(self, tokens: Tensor) -> tuple[Tensor, int]:
        """Zero tokens in front until the landmarks divide their number, and how many they are."""
        if self.mask_padding:
            return tokens, 0
        if torch.jit.is_scripting():
            pad = -tokens.shape[1] % self.landmarks
            return F.pad(tokens, [0, 0, pad, 0]), pad
        if is_exported():
            return _pad_exported(tokens, self.landmarks)
        count = tokens.shape[1]
        group = (count + self.landmarks - 1) // self.landmarks
        pad = group * self.landmarks - count
        return F.pad(tokens, [0, 0, pad, 0]), pad

    def _split(self, projected: Tensor, parts: int) -> Tensor:
        """``[b, n, parts D]`` to ``[parts, b, h, n, D / h]``."""
        return projected.unflatten(2, [parts, self.heads, -1]).permute(2, 0, 3, 1, 4)

    def _marks(self, rows: Tensor) -> Tensor:
        """Means of consecutive rows, ``[b, h, n, e]`` to ``[b, h, m, e]``."""
        if self.mask_padding:
            groups = F.adaptive_avg_pool1d(rows.flatten(0, 1).transpose(1, 2), min(self.landmarks, rows.shape[2]))
            return groups.transpose(1, 2).unflatten(0, [rows.shape[0], rows.shape[1]])
        return rows.unflatten(2, [self.landmarks, -1]).mean(dim=3)

    def _through_landmarks(self, query_marks: Tensor, key_marks: Tensor, gathered: Tensor) -> Tensor:
        """``Z A3 V``, ``[b, h, m, e]``, float32 or better, from ``A3 V``."""
        between = _attention(query_marks, key_marks)
        return times_pseudo_inverse(between, gathered, self.iterations, self.checkpoint)

    def _mix(self, value: Tensor) -> Tensor:
        """The convolution of every channel along the tokens, with its head's kernel, ``[b, h, n, e]``."""
        if torch.jit.is_scripting() or is_recorded():
            rows = self.mix(value.permute(0, 3, 1, 2).flatten(0, 1))
            return rows.unflatten(0, [-1, value.shape[3]]).permute(0, 2, 3, 1)
        return mix_tokens(value, self.mix.weight)

    def _out(self, mixed: Tensor) -> Tensor:
        return dropped(self.output(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)


def _attention(query: Tensor, key: Tensor) -> Tensor:
    """``softmax(Q K^T)``, float32 or better."""
    return torch.softmax(exact_matmul(query, key.transpose(2, 3)) * query.shape[3] ** -0.5, dim=3)


def _padded_rows(tokens: Rows, count: int, pad: int, start: int, stop: int) -> Tensor:
    """Tokens ``start`` to ``stop`` of the sequence with ``pad`` zeros in front; beyond its ends are zeros too."""
    first, last = (min(max(0, place - pad), count) for place in (start, stop))
    before, behind = max(0, min(stop, pad) - start), max(0, stop - max(start, pad + count))
    inside = tokens(first, last) if first < last else tokens(0, 1)[:, :0]
    return F.pad(inside, [0, 0, before, behind])


@torch.jit.ignore
def _pad_exported(tokens: Tensor, landmarks: int) -> tuple[Tensor, int]:
    """What :meth:`NystromAttention._pad` does, without fixing the length of its groups to that of the example."""
    count = tokens.shape[1]
    groups = (torch.scalar_tensor(count, dtype=torch.double) + (landmarks - 1)) / landmarks
    group: int = groups.long().item()  # type: ignore[assignment]
    torch._check(group >= 1)
    pad = group * landmarks - count
    place = torch.arange(group * landmarks, device=tokens.device) - pad
    padded = tokens.index_select(1, place.clamp(min=0)) * (place >= 0)[:, None]
    return padded, pad


def times_pseudo_inverse(matrix: Tensor, right: Tensor, iterations: int, keep_little: bool = False) -> Tensor:
    """``Z right`` with ``Z`` the iterative Moore-Penrose inverse of Razavi et al.; float32 or better.

    ``Z <- Z q(A Z)`` with ``q(S) = (13 I - S (15 I - S (7 I - S))) / 4``, from ``A^T`` over the product of the largest
    row and column sum that any head of the bag has. Six iterations do not converge for hundreds of landmarks; the
    methods are defined with them as they are. ``S <- S q(S)`` needs no ``Z``, and the factors ``q(S)`` commute, so
    each meets the narrow ``right`` at once: two products of square matrices an iteration instead of four.

    Args:
        matrix: ``A``, ``[b, h, m, m]``.
        right: ``[b, h, m, e]``.
        iterations: how many.
        keep_little: keep one square matrix an iteration for the gradient in place of three, for more work.
    """
    scale = _start_scale(matrix)
    refined = _refined(exact_matmul(matrix, matrix.transpose(2, 3)) * scale, right, iterations, keep_little)
    return exact_matmul(matrix.transpose(2, 3), refined) * scale


def row_times_pseudo_inverse(row: Tensor, matrix: Tensor, iterations: int, keep_little: bool = False) -> Tensor:
    """``row Z``, ``[b, h, 1, m]``, of the same ``Z`` for one row: square products apart nearly no work.

    Args:
        row: ``[b, h, 1, m]``.
        matrix: ``A``, ``[b, h, m, m]``.
        iterations: how many.
        keep_little: see :func:`times_pseudo_inverse`.
    """
    scale = _start_scale(matrix)
    start = exact_matmul(matrix, row.transpose(2, 3)) * scale
    return _refined(exact_matmul(matrix, matrix.transpose(2, 3)) * scale, start, iterations, keep_little).transpose(
        2, 3
    )


def _start_scale(matrix: Tensor) -> Tensor:
    """What ``A^T`` is multiplied by where the iteration starts, ``[b, 1, 1, 1]``."""
    matrix = matrix.to(exact_dtype(matrix.dtype))
    rows = matrix.abs().sum(dim=3).amax(dim=[1, 2])
    columns = matrix.abs().sum(dim=2).amax(dim=[1, 2])
    return (rows * columns).reciprocal()[:, None, None, None]


def _refined(product: Tensor, right: Tensor, iterations: int, keep_little: bool) -> Tensor:
    """All factors ``q(S)`` times ``right``, ``product`` being the first, symmetric ``S``."""
    if torch.jit.is_scripting() or is_exported():  # programs run without autocast
        return _all_factors(product, right, iterations, keep_little)
    with torch.autocast(product.device.type, enabled=False):
        return _all_factors(product, right, iterations, keep_little)


def _all_factors(product: Tensor, right: Tensor, iterations: int, keep_little: bool) -> Tensor:
    heads = product.shape[1]
    product, right = product.flatten(0, 1), right.to(product.dtype).flatten(0, 1)
    for _ in range(iterations - 1):
        if torch.jit.is_scripting():
            product, right = _closer(product), _factor(product, right)
        elif keep_little and torch.is_grad_enabled():
            closer = checkpoint(_closer, product, use_reentrant=False, preserve_rng_state=False)
            right = checkpoint(_factor, product, right, use_reentrant=False, preserve_rng_state=False)
            product = closer
        else:
            product, right = _closer(product), _factor(product, right)
    return _factor(product, right).unflatten(0, [-1, heads])


def _closer(product: Tensor) -> Tensor:
    """``S q(S)``."""
    square = torch.bmm(product, product)
    low = torch.add(3.25 * product, square, alpha=-3.75)
    return torch.baddbmm(low, square, torch.add(7 * product, square, alpha=-1), alpha=0.25)


def _factor(product: Tensor, right: Tensor) -> Tensor:
    """``q(S) right``."""
    inner = torch.baddbmm(right, product, right, beta=7, alpha=-1)
    inner = torch.baddbmm(right, product, inner, beta=15, alpha=-1)
    return torch.baddbmm(right, product, inner, beta=3.25, alpha=-0.25)
