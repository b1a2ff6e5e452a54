"""DEMIL: attention scores that do not compete (the multi-instance part of DEMIPL, Tang et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import (
    ChunkedAttentionNetwork,
    GatedAttention,
    ReadBag,
    RunningPool,
    dropped,
    write_columns,
)
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul


class DEMIL(ChunkedAttentionNetwork):
    """Every instance is judged by itself; the bag is the mean of the instances, weighted by how they are judged.

    ``h_i = relu(W x_i + b)``; ``s_i = w^T (tanh(V h_i + v) * sigmoid(U h_i + u)) + w_0``; ``r_i = sigmoid(s_i)``
    (Eq. 2); ``a_i = r_i / sum_j r_j``; ``z = sum_i a_i h_i`` (Eq. 3); ``logits = C z + c``. ``SigmoidEntropy`` drives
    the ``r_i`` to 0 or 1 (Eq. 4). Any number of instances may have ``r_i`` near 1: unlike under a softmax, none of them
    takes attention from another.

    The paper learns from several candidate labels of a bag, of which one is true. With one label, as here, its weights
    of candidates are 1 and its loss of the bag is the cross-entropy. Other than in the released program both gates
    have weights of their own (there they share one matrix) and ``attention_dim`` rows (there as many as classes), one
    linear map makes the score (there two with a ReLU), and the logits are not squeezed by a sigmoid before the softmax;
    all four as the paper's equations have it.

    The output holds ``logits``, ``attention``, ``attention_logits`` and ``bag`` ``[b, hidden_dim]``.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: width of ``h``.
        attention_dim: rows of ``V`` and ``U``.
        dropout: probability of zeroing a value of ``h`` in training, below 1.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import DEMIL
        >>> network = DEMIL(in_channels=16, num_classes=2, hidden_dim=32).eval()
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> judged = output["attention_logits"].sigmoid()
        >>> torch.allclose(output["attention"], judged / judged.sum())
        True
    """

    score_parameters = ("hidden", "attention")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 500,
        attention_dim: int = 128,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_classes)
        self.dropout = dropout
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.attention = GatedAttention(hidden_dim, attention_dim)
        self.classifier = nn.Linear(hidden_dim, num_classes)

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        rows = dropped(self._rows(image), self.dropout, self.training)
        if mask is not None:
            rows = rows.masked_fill(~mask[:, :, None], 0.0)
        scores = self.attention(rows, mask)
        attention = torch.softmax(F.logsigmoid(scores), dim=2)
        return self._answer(exact_matmul(attention, rows)[:, 0], attention, scores)

    @torch.jit.unused
    def _answer_bag(self, read: ReadBag) -> dict[str, Tensor]:
        weight = self.hidden.weight
        pool = RunningPool(1, len(weight), exact_dtype(weight.dtype), weight.device)
        scores = torch.empty_like(pool.seen)
        for part in read():
            rows = self._rows(part.T[None])
            found = self.attention(rows, None)[0]
            scores = write_columns(scores, pool.count, found)
            pool.add(F.logsigmoid(found), rows[0])
        bag, weights = pool.result()
        return self._answer(bag, torch.softmax(weights[None], dim=2), scores[None, :, : pool.count].clone())

    def _answer(self, bag: Tensor, attention: Tensor, scores: Tensor) -> dict[str, Tensor]:
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": attention,
            "attention_logits": scores,
            "bag": bag,
        }

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        return self.attention(self._rows(image), mask)

    def _rows(self, image: Tensor) -> Tensor:
        return F.relu(self.hidden(image.transpose(1, 2).to(self.hidden.weight.dtype)))

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        return DEMIL(12, 3, hidden_dim=16, attention_dim=8, dropout=0.0), (12,)
