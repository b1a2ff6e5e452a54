"""IBMIL: interventional bag multi-instance learning by backdoor adjustment (Lin et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from monai_mil.networks.blocks import ChunkedAttentionNetwork, ReadBag, RunningPool
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul


class IBMIL(ChunkedAttentionNetwork):
    """Attention-based MIL whose answer is adjusted by what bags have in common that has nothing to do with the label.

    ``s_i = w^T tanh(V x_i)`` over the features as they are; ``a = softmax(s)``; ``z = sum_i a_i x_i``. The confounders
    ``u_k`` are centres of clusters of the ``z`` of all training bags, found by a first stage of the training
    (``monai_mil.training.FillConfounders``) and fixed from then on. With ``q = W_q z`` and keys ``W_k u_k``,
    ``b = softmax(q . W_k u_k / sqrt(e))``; ``z' = sum_k b_k u_k``; ``logits = C (z, z') + c``.

    Until the confounders are known they are 0, and so is ``z'``: the first stage is plain ABMIL. As in the released
    program the bag is made of the encoder's own features, so that confounders mean the same however attention moves.

    The output holds ``logits``, ``attention``, ``attention_logits`` and ``bag``, the ``z`` ``[b, d]``.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        attention_dim: rows of ``V``.
        confounders: ``k``.
        joint_dim: ``e``, rows of ``W_q`` and ``W_k``.

    Raises:
        ValueError: there is no confounder.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import IBMIL
        >>> network = IBMIL(in_channels=16, num_classes=2, confounders=4)
        >>> network.confounders.copy_(torch.randn(4, 16)).shape
        torch.Size([4, 16])
        >>> list(network(torch.randn(1, 16, 100)).shape)
        [1, 2]
    """

    score_parameters = ("query", "score")
    if TYPE_CHECKING:  # TorchScript reads what a class annotates
        confounders: Tensor

    def __init__(
        self, in_channels: int, num_classes: int, attention_dim: int = 128, confounders: int = 8, joint_dim: int = 128
    ) -> None:
        super().__init__(num_classes)
        if confounders < 1:
            raise ValueError(f"there must be at least one confounder, got {confounders}")
        self.query = nn.Linear(in_channels, attention_dim)
        self.score = nn.Linear(attention_dim, 1)
        self.register_buffer("confounders", torch.zeros(confounders, in_channels))
        self.bag_query = nn.Linear(in_channels, joint_dim)
        self.confounder_key = nn.Linear(in_channels, joint_dim)
        self.classifier = nn.Linear(2 * in_channels, num_classes)

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        rows = image.transpose(1, 2).to(self.query.weight.dtype)
        if mask is not None:
            rows = rows.masked_fill(~mask[:, :, None], 0.0)
        scores = self._scores(rows, mask)
        return self._answer(exact_matmul(torch.softmax(scores, dim=2), rows)[:, 0], scores)

    @torch.jit.unused
    def _answer_bag(self, read: ReadBag) -> dict[str, Tensor]:
        weight = self.query.weight
        pool = RunningPool(1, weight.shape[1], exact_dtype(weight.dtype), weight.device)
        for part in read():
            rows = part.to(weight.dtype)
            pool.add(self._scores(rows[None], None)[0], rows)
        bag, scores = pool.result()
        return self._answer(bag, scores[None])

    def _answer(self, bag: Tensor, scores: Tensor) -> dict[str, Tensor]:
        adjusted = torch.cat([bag, self._adjustment(bag)], dim=1)
        return {
            "logits": exact_matmul(adjusted, self.classifier.weight.T) + self.classifier.bias,
            "attention": torch.softmax(scores, dim=2),
            "attention_logits": scores,
            "bag": bag,
        }

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        return self._scores(image.transpose(1, 2).to(self.query.weight.dtype), mask)

    def _scores(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        scores = self.score(torch.tanh(self.query(rows))).transpose(1, 2)
        scores = scores.to(exact_dtype(scores.dtype))
        return scores if mask is None else scores.masked_fill(~mask[:, None], -float("inf"))

    def _adjustment(self, bag: Tensor) -> Tensor:
        """The ``z'`` ``[b, d]``."""
        asked = exact_matmul(bag, self.bag_query.weight.T) + self.bag_query.bias
        keys = exact_matmul(self.confounders, self.confounder_key.weight.T) + self.confounder_key.bias
        share = torch.softmax(exact_matmul(asked, keys.T) * keys.shape[1] ** -0.5, dim=1)
        return exact_matmul(share, self.confounders)

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        network = IBMIL(12, 3, attention_dim=8, confounders=3, joint_dim=4)
        network.confounders.normal_()
        return network, (12,)
