"""ASMIL: attention-stabilised multiple-instance learning (Ye et al., ICLR 2026, arXiv 2603.06658)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import (
    ChunkedAttentionNetwork,
    QueryAttention,
    RunningPool,
    StackedLinear,
    compute_dtype,
    pool_bags,
    split_rows,
)
from monai_mil.networks.contract import check_chunks, exact_dtype, exact_matmul
from monai_mil.networks.reference import asmil_parameters, load_reference, size_of


class ASMIL(ChunkedAttentionNetwork):
    """Several learned tokens attend to the tiles, each in its own way; a class token attends to these tokens.

    ``h_i = relu(W x_i)``; every FEAT token attends to the ``h_i`` (:class:`QueryAttention`) and becomes ``f_t``; the
    class token attends likewise to the ``f_t``; ``logits = C z + c`` of what it becomes. In training some of the
    ``f_t`` are hidden from it. This is the forward pass as released; the paper's anchor, which gives the method its
    name, is ``monai_mil.training.Anchor`` with ``monai_mil.losses.AnchorDivergence``.

    The output holds ``logits``, ``attention`` and ``attention_logits`` ``[b, tokens * heads, n]`` (the heads of a token
    side by side; their softmax is the attention whatever the ``normalisation``) and ``bag`` ``[b, hidden_dim]``. An
    instance's score is its attention, averaged over tokens and heads.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: ``i``, a multiple of ``heads``; None for half of ``in_channels``, at least 128.
        tokens: ``T``, number of FEAT tokens.
        heads: of every attention.
        drop: ``B``, share of the tokens that are hidden in training, below 1.
        drop_mode: ``"bernoulli"`` hides every token with probability ``drop`` (the paper), ``"fixed"`` always the
            same number of them (the released code). One token is left in any case.
        dropout: on what every attention gives, in training.
        normalisation: of the attention of the tokens over the instances. ``"softmax"`` is the method's; the paper
            compares ``"nsf"``, the normalised sigmoid ``sigmoid(s_i) / sum_j sigmoid(s_j)`` that its anchor has, and
            ``"mixture"``, ``w softmax + (1 - w) nsf`` with a learned ``w`` that begins at a half.
        token_logits: also classify every ``f_t`` by itself, as ``token_logits`` ``[b, t, c]``. No loss of the method
            teaches these classifiers, and DDP waits for parameters without a loss.

    Raises:
        ValueError: ``heads`` does not divide ``hidden_dim``, or ``drop`` or ``drop_mode`` is none of these.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import ASMIL
        >>> network = ASMIL(in_channels=16, num_classes=2, hidden_dim=32, tokens=4, heads=2).eval()
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> list(output["attention"].shape)  # four tokens of two heads
        [1, 8, 100]
    """

    score_parameters = ("hidden", "attention.token", "attention.query", "attention.key")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int | None = None,
        tokens: int = 8,
        heads: int = 8,
        drop: float = 0.5,
        drop_mode: Literal["bernoulli", "fixed"] = "bernoulli",
        dropout: float = 0.1,
        token_logits: bool = False,
        normalisation: Literal["softmax", "nsf", "mixture"] = "softmax",
    ) -> None:
        super().__init__(num_classes)
        if hidden_dim is None:
            hidden_dim = 128 if in_channels < 512 else in_channels // 2 // heads * heads
        if hidden_dim % heads:
            raise ValueError(f"heads must divide hidden_dim, got {heads} and {hidden_dim}")
        if not 0 <= drop < 1:
            raise ValueError(f"drop must be at least 0 and below 1, got {drop}")
        if drop_mode not in ("bernoulli", "fixed"):
            raise ValueError(f"drop_mode must be 'bernoulli' or 'fixed', not '{drop_mode}'")
        if normalisation not in ("softmax", "nsf", "mixture"):
            raise ValueError(f"normalisation must be 'softmax', 'nsf' or 'mixture', not '{normalisation}'")
        self.normalisation = normalisation
        self.mixture = nn.Parameter(torch.zeros(())) if normalisation == "mixture" else None
        self.drop = drop
        self.always_dropped = min(round(drop * tokens), tokens - 1) if drop_mode == "fixed" else -1
        self.hidden = nn.Linear(in_channels, hidden_dim, bias=False)
        self.attention = QueryAttention(hidden_dim, tokens, heads, dropout)
        nn.init.normal_(self.attention.token, std=1e-6)
        self.bag_attention = QueryAttention(hidden_dim, 1, heads, dropout)
        self.classifier = nn.Linear(hidden_dim, num_classes)
        self.token_classifier = StackedLinear(tokens, hidden_dim, num_classes) if token_logits else None

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        bags = []
        for rows in image.mT:
            parts = [self.attention.scores(self._rows(part)[None], None) for part in split_rows(rows)]
            bags.append(torch.cat(parts, dim=2))
        scores = torch.cat(bags)
        return scores if mask is None else scores.masked_fill(~mask[:, None], -torch.inf)

    @torch.jit.unused
    def _answer_chunks(self, chunks: Iterable[Tensor | np.ndarray]) -> dict[str, Tensor]:
        pooled, scores = self._stream(check_chunks(chunks, self.hidden.weight.device))
        return self._answer(pooled[None], scores[None], scores[None].softmax(dim=2))

    @torch.jit.unused
    def _in_chunks(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Bag by bag over the real instances, in chunks of them; without gradients."""
        pooled, scores = pool_bags(image, mask, self._stream)
        return self._answer(pooled, scores, scores.softmax(dim=2))

    @torch.jit.unused
    def _stream(self, chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Rows pooled with every attention ``[t h, i]`` and all scores ``[t h, n]`` of one bag."""
        probes, offsets = self.attention.probes()
        size = (len(probes), probes.shape[1], probes.dtype, probes.device)
        softmax, nsf = RunningPool(*size), RunningPool(*size)
        for part in chunks:
            rows = self._rows(part)
            with torch.autocast(rows.device.type, enabled=False):
                scores = torch.addmm(offsets[:, None], probes, rows.T)
                if self.normalisation != "nsf":
                    softmax.add(scores, rows)
                if self.normalisation != "softmax":
                    nsf.add(F.logsigmoid(scores), rows)
        if self.mixture is None:
            return nsf.result() if self.normalisation == "nsf" else softmax.result()
        (pooled, scores), (other, _) = softmax.result(), nsf.result()
        return torch.lerp(other, pooled, torch.sigmoid(self.mixture)), self._log_attention(scores[None])[0]

    def _log_attention(self, scores: Tensor) -> Tensor:
        """Scores ``[b, t h, n]`` whose softmax is the attention."""
        if self.normalisation == "softmax":
            return scores
        apart = F.logsigmoid(scores)
        weight = self.mixture
        if weight is None:
            return apart
        hole = scores == -float("inf")  # twice -inf would have no gradient
        one = F.logsigmoid(weight) + torch.log_softmax(scores, dim=2).masked_fill(hole, 0.0)
        other = F.logsigmoid(-weight) + torch.log_softmax(apart, dim=2).masked_fill(hole, 0.0)
        return torch.logaddexp(one, other).masked_fill(hole, -float("inf"))

    @torch.jit.unused
    def _rows(self, rows: Tensor) -> Tensor:
        """Hidden rows of a chunk, ``[m, d]`` to ``[m, i]``, float32 or better; without gradients."""
        weight = self.hidden.weight
        dtype = compute_dtype(weight)
        with torch.autocast(rows.device.type, enabled=False):
            return (rows.to(dtype) @ weight.T.to(dtype)).relu_().to(exact_dtype(weight.dtype))

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The same in plain operations on the whole batch: for training, TorchScript, traces and ONNX."""
        weight = self.hidden.weight
        rows = F.relu(self.hidden(image.transpose(1, 2).to(weight.dtype)), inplace=True).to(exact_dtype(weight.dtype))
        if mask is not None:
            rows = rows.masked_fill(~mask[:, :, None], 0.0)
        scores = self._log_attention(self.attention.scores(rows, mask))
        attention = torch.softmax(scores, dim=2)
        return self._answer(exact_matmul(attention, rows), scores, attention)

    def _answer(self, pooled: Tensor, scores: Tensor, attention: Tensor) -> dict[str, Tensor]:
        features = self.attention.read(pooled)
        kept = self._draw_kept(features) if self.training else None
        share = torch.softmax(self.bag_attention.scores(features, kept), dim=2)
        bag = self.bag_attention.read(exact_matmul(share, features))[:, 0]
        output = {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": attention,
            "attention_logits": scores,
            "bag": bag,
        }
        if self.token_classifier is not None:
            output["token_logits"] = self.token_classifier(features)
        return output

    def _draw_kept(self, features: Tensor) -> Tensor:
        """Which tokens the class token sees in this step: ``[b, t, i]`` to ``[b, t]``, True at least once a bag."""
        bags, tokens = features.shape[0], features.shape[1]
        if self.always_dropped >= 0:
            places = [torch.randperm(tokens, device=features.device)[: self.always_dropped] for _ in range(bags)]
            kept = torch.ones(bags, tokens, dtype=torch.bool, device=features.device)
            return kept.scatter(1, torch.stack(places), torch.zeros_like(kept))
        # Given that one is kept, the first of them is geometric and the later ones are free: no draw is ever repeated.
        chance = torch.rand(bags, 1, device=features.device)
        first = (torch.log1p(-chance * (1 - self.drop**tokens)) / math.log(max(self.drop, 1e-30))).floor()
        behind = torch.arange(tokens, device=features.device) - first.clamp(max=tokens - 1)
        free = torch.rand(bags, tokens, device=features.device) >= self.drop
        return (behind == 0) | ((behind > 0) & free)

    @classmethod
    def from_reference(
        cls,
        state_dict: Mapping[str, Tensor],
        heads: int = 8,
        drop: float = 0.5,
        dropout: float = 0.1,
        token_logits: bool = False,
    ) -> ASMIL:
        """A checkpoint of the released program, of its network or of its anchor.

        Args:
            state_dict: parameters under the reference's names. Its layer norm of the hidden rows, which it never
                applies, is left out.
            heads: as in the constructor; a checkpoint does not tell.
            drop: likewise.
            dropout: likewise.
            token_logits: take the tokens' own classifiers too.

        Raises:
            ValueError: the names or shapes are not ASMIL's.
        """
        parameters = asmil_parameters(state_dict)
        hidden_dim, in_channels = (size_of(parameters, "hidden.weight", axis) for axis in (0, 1))
        tokens, num_classes = size_of(parameters, "attention.token", 0), size_of(parameters, "classifier.weight", 0)
        network = cls(
            in_channels, num_classes, hidden_dim, tokens, heads, drop, dropout=dropout, token_logits=token_logits
        )
        if not token_logits:
            parameters = {name: value for name, value in parameters.items() if not name.startswith("token_")}
        load_reference(network, parameters)
        return network
