"""ACMIL: several attention branches that are kept apart, and masked favourites (Zhang et al., ECCV 2024)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import ChunkedAttentionNetwork, GatedAttention, ReadBag, RunningPool, StackedLinear
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul


class ACMIL(ChunkedAttentionNetwork):
    """Attention challenging MIL: multiple branch attention (MBA) and stochastic top-k instance masking (STKIM).

    ``h_i = relu(W x_i)``; ``s_t = w_t^T (tanh(V h_i) * sigmoid(U h_i))`` of every branch ``t``; ``a_t = softmax(s_t)``;
    ``z_t = sum_i a_ti h_i``; ``y_t = C_t z_t + c_t``; the bag is read by the mean attention, ``z = sum_t z_t / T``;
    ``logits = C z + c``. In training a share of the ``masked`` most attended instances of every branch is hidden from
    it, drawn anew in every step, so that attention cannot rest on a few. The branches are taught the label too
    (``BranchLoss``), and to look at different instances (``AttentionSimilarity``).

    Of a bag of fewer than ``masked`` instances the same share of all is hidden. The released training script passes the
    number of branches in place of ``masked``; the paper's K is meant here. Its variant with multi-head attention
    is not built.

    The output holds ``logits``, ``bag`` ``[b, hidden_dim]``, ``branch_logits`` ``[b, T, c]`` and ``attention`` and
    ``attention_logits`` of one head a branch. In training ``attention`` is that without the hidden instances, and
    ``attention_logits`` that with all. An instance's score is its attention, averaged over the branches, which is the
    method's own.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: width of ``h``.
        attention_dim: rows of ``V`` and ``U``.
        branches: ``T``.
        masked: ``K``; 0 for a training without masking.
        mask_drop: share of them that is hidden, below 1.

    Raises:
        ValueError: ``branches``, ``masked`` or ``mask_drop`` is out of range.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import ACMIL
        >>> network = ACMIL(in_channels=16, num_classes=2, branches=5).eval()
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> list(output["attention"].shape), list(output["branch_logits"].shape)
        ([1, 5, 100], [1, 5, 2])
    """

    score_parameters = ("hidden", "attention")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 512,
        attention_dim: int = 128,
        branches: int = 5,
        masked: int = 10,
        mask_drop: float = 0.6,
    ) -> None:
        super().__init__(num_classes)
        if branches < 1 or masked < 0:
            raise ValueError(f"branches must be at least 1 and masked at least 0, got {branches} and {masked}")
        if not 0 <= mask_drop < 1:
            raise ValueError(f"mask_drop must be at least 0 and below 1, got {mask_drop}")
        self.masked = masked
        self.mask_drop = mask_drop
        self.hidden = nn.Linear(in_channels, hidden_dim, bias=False)
        self.attention = GatedAttention(hidden_dim, attention_dim, branches)
        self.branch_classifier = StackedLinear(branches, hidden_dim, num_classes)
        self.classifier = nn.Linear(hidden_dim, num_classes)

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        rows = self._rows(image)
        if mask is not None:
            rows = rows.masked_fill(~mask[:, :, None], 0.0)
        scores = self.attention(rows, mask)
        attention = torch.softmax(self._hide_favourites(scores) if self.training else scores, dim=2)
        return self._answer(exact_matmul(attention, rows), scores, attention)

    @torch.jit.unused
    def _answer_bag(self, read: ReadBag) -> dict[str, Tensor]:
        weight = self.hidden.weight
        pool = RunningPool(len(self.branch_classifier.weight), len(weight), exact_dtype(weight.dtype), weight.device)
        for part in read():
            rows = self._rows(part.T[None])
            pool.add(self.attention(rows, None)[0], rows[0])
        branches, scores = pool.result()
        return self._answer(branches[None], scores[None], torch.softmax(scores[None], dim=2))

    def _answer(self, branches: Tensor, scores: Tensor, attention: Tensor) -> dict[str, Tensor]:
        bag = branches.mean(dim=1)
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": attention,
            "attention_logits": scores,
            "bag": bag,
            "branch_logits": self.branch_classifier(branches),
        }

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        return self.attention(self._rows(image), mask)

    def _rows(self, image: Tensor) -> Tensor:
        return F.relu(self.hidden(image.transpose(1, 2).to(self.hidden.weight.dtype)))

    def _hide_favourites(self, scores: Tensor) -> Tensor:
        """Scores ``[b, T, n]`` with ``-inf`` for the share of every branch's most attended that is drawn."""
        top = (scores > -float("inf")).sum(dim=2, keepdim=True).clamp(max=self.masked)
        favourite = scores.argsort(dim=2, descending=True).argsort(dim=2) < top
        drawn = torch.rand(scores.shape, device=scores.device).masked_fill(~favourite, 2.0)
        hidden = drawn.argsort(dim=2).argsort(dim=2) < (top * self.mask_drop).floor()
        return scores.masked_fill(hidden, -float("inf"))

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        return ACMIL(12, 3, hidden_dim=16, attention_dim=8, branches=3), (12,)
