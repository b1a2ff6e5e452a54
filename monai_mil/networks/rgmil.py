"""RGMIL: the bag's regressor tells which instances matter (Du et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import ChunkedAttentionNetwork, ReadBag, RunningPool, write_columns
from monai_mil.networks.contract import exact_dtype, exact_matmul


class RGMIL(ChunkedAttentionNetwork):
    """Regressor-guided pooling: instances are weighed by what the bag's own regressor says of them.

    ``h_i = relu(W2 relu(W1 x_i + b1) + b2)``; the regressor gives ``r_i = R^T h_i``, two numbers for "not" and "yes";
    ``u_i = r_i1 - r_i0``; ``s_i = (u_i - mean u) / sqrt(var u + 1e-5)`` over the instances of the bag (the program's
    LayerNorm over them, which has no parameters); ``a = softmax(s)``; ``z = sum_i a_i h_i``; ``logits = R^T z``. The
    order of the instances does not matter.

    With two classes there is one such regressor. With more, or with one output, every class has a regressor of its own,
    its own attention and vector ``z_c``, as the authors' program has it for several kinds of digits; its logit is then
    the difference of the two numbers, ``logits_c = v_c^T z_c`` with ``v_c = R_1 - R_0``: one vector is enough.

    The output holds ``logits``, ``attention`` and ``attention_logits`` of one head a regressor, ``bag``, and the
    attention as ``instance_scores`` ``[b, c, n]``.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: width of ``h``.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import RGMIL
        >>> network = RGMIL(in_channels=16, num_classes=2, hidden_dim=32)
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> round(output["attention_logits"].mean().item(), 4), list(output["attention"].shape)
        (0.0, [1, 1, 100])
    """

    score_parameters = ("first", "second", "regressor")
    rereads = True

    def __init__(self, in_channels: int, num_classes: int, hidden_dim: int = 512) -> None:
        super().__init__(num_classes)
        self.first = nn.Linear(in_channels, hidden_dim)
        self.second = nn.Linear(hidden_dim, hidden_dim)
        self.regressor = nn.Parameter(torch.empty(hidden_dim, num_classes))
        nn.init.kaiming_uniform_(self.regressor)

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        hidden, scores = self._hidden_and_scores(image, mask)
        return self._answer(exact_matmul(torch.softmax(scores, dim=2), hidden), scores)

    @torch.jit.unused
    def _answer_bag(self, read: ReadBag) -> dict[str, Tensor]:
        weight = self.regressor
        regressors = 1 if self.num_classes == 2 else self.num_classes
        evidence, count = weight.new_empty(regressors, 65536, dtype=exact_dtype(weight.dtype)), 0
        for part in read():
            evidence = write_columns(evidence, count, self._evidence(self._hidden(part.T[None]))[0])
            count += len(part)
        scores = _standardised(evidence[None, :, :count])
        pool = RunningPool(regressors, len(weight), scores.dtype, weight.device)
        for part in read():
            pool.add(scores[0, :, pool.count : pool.count + len(part)], self._hidden(part.T[None])[0])
        return self._answer(pool.result()[0][None], scores)

    def _answer(self, bags: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """From the vectors of all regressors ``[b, regressors, i]``."""
        attention = torch.softmax(scores, dim=2)
        answers = exact_matmul(bags, self.regressor)
        if self.num_classes == 2:
            logits = answers[:, 0]
            instance_scores = attention.expand(-1, 2, -1)
        else:
            logits = answers.diagonal(dim1=1, dim2=2)
            instance_scores = attention
        return {
            "logits": logits,
            "attention": attention,
            "attention_logits": scores,
            "bag": bags.flatten(1),
            "instance_scores": instance_scores,
        }

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        return self._hidden_and_scores(image, mask)[1]

    def _hidden_and_scores(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden rows ``[b, n, i]`` and attention before softmax, a head a regressor, ``-inf`` on padding."""
        hidden = self._hidden(image)
        evidence = self._evidence(hidden)
        if mask is None:
            return hidden, _standardised(evidence)
        real = mask[:, None].to(evidence.dtype)
        count = real.sum(dim=2, keepdim=True)
        centred = (evidence - (evidence * real).sum(dim=2, keepdim=True) / count) * real
        scores = centred / (centred.square().sum(dim=2, keepdim=True) / count + 1e-5).sqrt()
        hidden = hidden.masked_fill(~mask[:, :, None], 0.0)
        return hidden, scores.masked_fill(~mask[:, None], -float("inf"))

    def _hidden(self, image: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(image.transpose(1, 2).to(self.first.weight.dtype)))))

    def _evidence(self, hidden: Tensor) -> Tensor:
        """The ``u_i`` of every regressor, ``[b, regressors, n]``."""
        evidence = exact_matmul(hidden, self.regressor).transpose(1, 2)
        if self.num_classes == 2:
            evidence = evidence[:, 1:] - evidence[:, :1]
        return evidence.to(exact_dtype(evidence.dtype))


def _standardised(evidence: Tensor) -> Tensor:
    centred = evidence - evidence.mean(dim=2, keepdim=True)
    return centred / (centred.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()
