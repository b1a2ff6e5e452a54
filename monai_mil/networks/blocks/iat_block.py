"""One block of the Integrated Attention Transformer: tokens to tokens, and to one vector of the bag."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from monai_mil.networks.blocks.attention_pool import RunningPool
from monai_mil.networks.blocks.dropping import dropped
from monai_mil.networks.blocks.nystrom import NystromAttention
from monai_mil.networks.blocks.token_sequence import TokenSequence
from monai_mil.networks.contract import exact_dtype, exact_matmul
from monai_mil.networks.graph import is_recorded

RESIDUAL_SCALE = math.sqrt(9 / math.log(9) - 1)
"""What the tokens are multiplied with before attention is added: the constant of admin initialisation for a network of
eight residual layers, which the reference takes whatever its depth."""

CHUNK_TOKENS = 4096
"""Steps that know one token only are done for so many at once where no gradient is wanted."""

BlockOutput = tuple[Tensor, Tensor, Tensor, Tensor]


class IATBlock(nn.Module):
    """``x = gelu(LN(W t))``, ``x = omega x + Nystroem(LN(x))``, gated attention pooling of ``x`` (HAG-MIL, Eq. 10, 11).

    ``y = LN(x)``; ``g = dropout(gelu(W y))``; ``a = w^T (dropout(tanh(V g)) * dropout(sigmoid(U g)))``;
    ``bag = gelu(LN(W LN(sum_i softmax(a)_i x_i)))`` with the ``LN`` of ``y``. The paper's equations have no softmax and
    no ``g``; the released network has.

    Args:
        in_channels: width of a token that comes in.
        channels: ``D``, width of a token that goes out, a multiple of 8.
        bag_channels: ``F``, width of the bag's vector.
        instance_channels: width of ``g``.
        attention_dim: rows of ``V`` and of ``U``.
        residual_scale: ``omega``.
        dropout: of ``g`` and both gates.
        attention_dropout: of the Nystroem attention's result.
        mask_padding: see :class:`NystromAttention`.
        checkpoint: keep what comes out of the block's steps only while training, and do each step a second time.
        gated: False for the paper's ablation with plain attention, ``a = w^T dropout(tanh(V g))``.
        class_token: the first token stands for the bag: it takes in the pooling of the others, ``x_0 = x_0 + sum_i
            softmax(a)_i x_i``, and ``bag`` is made of it; scores and ``g`` are the others'.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        bag_channels: int,
        instance_channels: int = 512,
        attention_dim: int = 256,
        residual_scale: float = RESIDUAL_SCALE,
        dropout: float = 0.25,
        attention_dropout: float = 0.3,
        mask_padding: bool = False,
        checkpoint: bool = False,
        gated: bool = True,
        class_token: bool = False,
    ) -> None:
        super().__init__()
        self.gated = gated
        self.class_token = class_token
        self.attention_dim = attention_dim
        self.residual_scale = residual_scale
        self.dropout = dropout
        self.project = nn.Linear(in_channels, channels)
        self.norm_project = nn.LayerNorm(channels)
        self.norm_attention = nn.LayerNorm(channels)
        self.checkpoint = checkpoint
        self.attention = NystromAttention(
            channels,
            landmarks=channels // 2,
            dropout=attention_dropout,
            mask_padding=mask_padding,
            checkpoint=checkpoint,
        )
        self.norm = nn.LayerNorm(channels)
        self.instance = nn.Linear(channels, instance_channels)
        self.gates = nn.Linear(instance_channels, (2 if gated else 1) * attention_dim)  # rows of V, then of U
        self.score = nn.Linear(attention_dim, 1)
        self.bag = nn.Linear(channels, bag_channels)
        self.norm_bag = nn.LayerNorm(bag_channels)

    def forward(self, tokens: Tensor) -> BlockOutput:
        """Tokens ``[b, n, D_in]`` to tokens ``[b, n, D]``, bag ``[b, F]``, scores ``[b, n]`` and ``g`` ``[b, n, i]``.

        Bag and scores are float32 or better.
        """
        if self.class_token:
            return self._with_class_token(tokens)
        if torch.jit.is_scripting() or is_recorded():
            return self._whole(tokens)
        return self._with_gradients(tokens) if torch.is_grad_enabled() else self._in_chunks(tokens)

    @torch.jit.unused
    def _with_gradients(self, tokens: Tensor) -> BlockOutput:
        return self._in_steps(tokens) if self.checkpoint else self._whole(tokens)

    @torch.jit.unused
    def _in_steps(self, tokens: Tensor) -> BlockOutput:
        """The same, keeping what comes out of every step only; steps are done a second time when gradients are due."""
        tokens = checkpoint(self._enter, tokens, use_reentrant=False)
        tokens = checkpoint(self._attend, tokens, use_reentrant=False)
        instances, scores = checkpoint(self._score, tokens, use_reentrant=False)
        return tokens, self._pool(tokens, scores), scores, instances

    def _whole(self, tokens: Tensor) -> BlockOutput:
        tokens = self._attend(self._enter(tokens))
        instances, scores = self._score(tokens)
        return tokens, self._pool(tokens, scores), scores, instances

    def _with_class_token(self, tokens: Tensor) -> BlockOutput:
        tokens = self._attend(self._enter(tokens))
        token, tiles = tokens[:, :1], tokens[:, 1:]
        instances, scores = self._score(tiles)
        pooled = exact_matmul(torch.softmax(scores, dim=1)[:, None], tiles)
        token = token + pooled.to(token.dtype)
        return torch.cat([token, tiles], dim=1), self._bag_of(token.squeeze(1)), scores, instances

    @torch.jit.unused
    def _in_chunks(self, tokens: Tensor) -> BlockOutput:
        """The same without gradients, holding little more than two copies of the tokens."""
        parts = [self._enter(part) for part in tokens.split(CHUNK_TOKENS, dim=1)]
        tokens = torch.cat(parts, dim=1)
        del parts
        attended = self.attention(self.norm_attention(tokens))
        if attended.dtype == tokens.dtype:
            tokens = attended.add_(tokens, alpha=self.residual_scale)
        else:  # autocast on a GPU: in place would round the tokens to attention's precision
            tokens = attended + self.residual_scale * tokens
        looked = [self._score(part) for part in tokens.split(CHUNK_TOKENS, dim=1)]
        instances, scores = (torch.cat(parts, dim=1) for parts in zip(*looked, strict=True))
        return tokens, self._pool(tokens, scores), scores, instances

    @torch.jit.unused
    def stream(self, tokens: TokenSequence, step: int) -> TokenSequence:
        """The block's tokens of a sequence that is never held, in evaluation and in blocks of ``step``."""
        entered = TokenSequence(lambda start, stop: self._enter(tokens.rows(start, stop)), tokens.count, step)
        attention = self.attention.stream(
            lambda start, stop: self.norm_attention(entered.rows(start, stop)), entered.count
        )
        return TokenSequence(
            lambda start, stop: self.residual_scale * entered.rows(start, stop) + attention(start, stop),
            entered.count,
            step,
        )

    @torch.jit.unused
    def read(
        self, tokens: TokenSequence, step: int, branch: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the block says of the one bag whose tokens :meth:`stream` gives.

        Returns:
            The bag ``[1, F]``, the scores ``[1, n]`` and what ``branch`` makes of ``g``, ``[1, c, n]``.
        """
        dtype = exact_dtype(self.bag.weight.dtype)
        pool = RunningPool(1, self.bag.weight.shape[1], dtype, self.bag.weight.device)
        evidence = pool.seen.new_empty(1, 1, 0)
        for start in range(0, tokens.count, step):
            rows = tokens.rows(start, min(start + step, tokens.count))
            instances, scores = self._score(rows)
            pool.add(scores.to(dtype), rows[0])
            found = branch(instances[:, None])
            if start == 0:
                evidence = found.new_empty(1, found.shape[1], tokens.count)
            evidence[:, :, start : start + found.shape[2]] = found
        pooled, scores = pool.result()
        return self._bag_of(pooled), scores, evidence

    def _enter(self, tokens: Tensor) -> Tensor:
        return F.gelu(self.norm_project(self.project(tokens)))

    def _attend(self, tokens: Tensor) -> Tensor:
        return self.residual_scale * tokens + self.attention(self.norm_attention(tokens))

    def _score(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``g`` and the scores."""
        instances = dropped(F.gelu(self.instance(self.norm(tokens))), self.dropout, self.training)
        gates = self.gates(instances)
        tanh = dropped(torch.tanh(gates[:, :, : self.attention_dim]), self.dropout, self.training)
        if self.gated:
            tanh = tanh * dropped(torch.sigmoid(gates[:, :, self.attention_dim :]), self.dropout, self.training)
        scores = exact_matmul(tanh, self.score.weight.T) + self.score.bias
        return instances, scores.squeeze(2)

    def _pool(self, tokens: Tensor, scores: Tensor) -> Tensor:
        pooled = exact_matmul(torch.softmax(scores, dim=1)[:, None], tokens).squeeze(1)
        return self._bag_of(pooled)

    def _bag_of(self, pooled: Tensor) -> Tensor:
        bag = F.gelu(self.norm_bag(self.bag(self.norm(pooled.to(self.norm.weight.dtype)))))
        return bag.to(exact_dtype(bag.dtype))
