"""DeepAttnMISL: attention over groups of tiles that look alike (Yao et al., Medical Image Analysis 2020)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import AttentionNetwork, phenotypes, row_parts
from monai_mil.networks.contract import MILNetwork, exact_matmul


class DeepAttnMISL(AttentionNetwork):
    """Cluster the tiles of a bag, embed each cluster (a phenotype) by one network for all, attend to the clusters.

    The tiles' features fall into ``k`` groups by k-means. ``h_i = relu(W x_i + b)``; ``g_c`` is the mean of the ``h_i``
    of group ``c`` (MI-FCN); ``s_c = w^T tanh(V g_c + v) + b'``; ``A = softmax(s)`` over the groups that hold a tile;
    ``z = sum_c A_c g_c``; ``logits = D relu(C z + c) + d``. The order of the tiles does not matter.

    The output holds ``logits``, ``bag`` ``[b, hidden_dim]``, and as ``attention`` what a tile has of its group's,
    ``a_i = A_c / n_c`` of its ``n_c`` tiles, with which ``z = sum_i a_i h_i``; ``attention_logits`` are
    ``s_c - log n_c``. A tile's score is its attention.

    The paper clusters each patient's tiles with k-means from random centres, before training; here the network does it
    itself and draws nothing (see ``blocks.phenotypes``), so that raw bags can be answered and the answer is always the
    same. The paper has one output, a risk; the authors' program counts an empty group out of the softmax, as here.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: width of ``h``.
        attention_dim: rows of ``V`` and of ``C``.
        clusters: ``k``, six to ten in the paper.
        dropout: behind ``C`` in training.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import DeepAttnMISL
        >>> network = DeepAttnMISL(in_channels=16, num_classes=2, clusters=4)
        >>> attention = network(torch.randn(1, 16, 100), return_dict=True)["attention"]
        >>> len(attention.unique()) <= 4  # the tiles of a phenotype are looked at alike
        True
    """

    score_parameters = ("hidden", "gates", "score")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 64,
        attention_dim: int = 32,
        clusters: int = 10,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_classes)
        self.clusters = clusters
        self.iterations = 10
        self.dropout = dropout
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.gates = nn.Linear(hidden_dim, attention_dim)
        self.score = nn.Linear(attention_dim, 1)
        self.merge = nn.Linear(hidden_dim, attention_dim)
        self.classifier = nn.Linear(attention_dim, num_classes)

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        bag, scores = self._bag_and_scores(image, mask)
        merged = F.relu(exact_matmul(bag, self.merge.weight.T) + self.merge.bias)
        merged = F.dropout(merged, self.dropout, self.training)
        return {
            "logits": exact_matmul(merged, self.classifier.weight.T) + self.classifier.bias,
            "attention": torch.softmax(scores, dim=2),
            "attention_logits": scores,
            "bag": bag,
        }

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        return self._bag_and_scores(image, mask)[1]

    def _bag_and_scores(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The ``z`` ``[b, i]`` and attention before softmax ``[b, 1, n]``, ``-inf`` on padding."""
        rows = image.transpose(1, 2)
        members = phenotypes(rows, mask, self.clusters, self.iterations)
        number = members.sum(dim=2, keepdim=True)
        size = number.clamp(min=1)
        means = self._sums(rows, members) / size
        gates = torch.tanh(self.gates(means.to(self.gates.weight.dtype)))
        evidence = exact_matmul(gates, self.score.weight.T) + self.score.bias
        share = torch.softmax(evidence.masked_fill(number == 0, -float("inf")), dim=1)
        scores = exact_matmul((evidence - size.log()).transpose(1, 2), members)
        scores = scores if mask is None else scores.masked_fill(~mask[:, None], -float("inf"))
        return exact_matmul(share.transpose(1, 2), means)[:, 0], scores

    def _sums(self, rows: Tensor, members: Tensor) -> Tensor:
        """The ``h_i`` of each group together, ``[b, k, i]``."""
        total = torch.zeros_like(members[:, :, :1])
        start = 0
        for part in row_parts(rows):
            hidden = F.relu(self.hidden(part.to(self.hidden.weight.dtype)))
            total = total + exact_matmul(members.narrow(2, start, part.shape[1]), hidden)
            start += part.shape[1]
        return total

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        return DeepAttnMISL(12, 3, hidden_dim=8, attention_dim=4, clusters=3), (12,)
