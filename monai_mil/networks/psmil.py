"""PSMIL: attention in the space of class probabilities (Du et al., ICLR 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import ChunkedAttentionNetwork, ReadBag, RunningPool
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul


class PSMIL(ChunkedAttentionNetwork):
    """Instances are weighed by how likely they are of each class, and not by their features.

    ``h_i = relu(W2 relu(W1 x_i + b1) + b2)``; with a prototype ``m_c`` of every class, ``p_i = softmax_c(h_i . m_c)``,
    through which no gradient flows; ``s_i = v^T p_i``; ``a = softmax(s)``; ``z = sum_i a_i h_i``;
    ``logits = R^T z``. Gradients that reach features through attention, which make them collapse, are thus cut off.

    A prototype follows the bags of its class: after each training step with a bag of class ``y``, ``m_y`` becomes
    ``m m_y + (1 - m) h_j`` at length 1, with the instance ``j`` of the highest ``p_jy``
    (:class:`monai_mil.training.FollowPrototypes`); before the first step all are the mean instance of the first bag.
    Without that handler, as where bags have no classes, they stay equal, and the network takes the mean of the ``h_i``.
    With one output there is nothing to weigh: ``p_i`` is 1.

    The authors' program moves the prototypes in its tests too, by the label of the bag that is tested; here they are
    those of the training. For its classic sets it has the two layers that make ``h``, as here, for slides none.

    The output holds ``logits``, ``attention``, ``attention_logits`` and ``bag`` ``[b, hidden_dim]``; in training also
    ``class_rows`` ``[b, c, hidden_dim]``, each class's ``h_j``.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: width of ``h``.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import PSMIL
        >>> network = PSMIL(in_channels=16, num_classes=2, hidden_dim=32)
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> list(output["class_rows"].shape), round(output["attention"].max().item(), 4)  # prototypes are equal still
        ([1, 2, 32], 0.01)
    """

    score_parameters = ("first", "second", "prototypes", "weigh")
    if TYPE_CHECKING:  # TorchScript reads what a class annotates
        prototypes: Tensor

    def __init__(self, in_channels: int, num_classes: int, hidden_dim: int = 512) -> None:
        super().__init__(num_classes)
        self.first = nn.Linear(in_channels, hidden_dim)
        self.second = nn.Linear(hidden_dim, hidden_dim)
        self.weigh = nn.Linear(num_classes, 1, bias=False)
        self.regressor = nn.Parameter(torch.empty(hidden_dim, num_classes))
        nn.init.kaiming_uniform_(self.regressor)
        self.register_buffer("prototypes", torch.zeros(num_classes, hidden_dim))

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        rows = self._rows(image)
        if mask is not None:
            rows = rows.masked_fill(~mask[:, :, None], 0.0)
        if self.training and not torch.jit.is_scripting():
            self._begin(rows, mask)
        prob = self._probabilities(rows)
        scores = self._scores(prob, mask)
        output = self._answer(exact_matmul(torch.softmax(scores, dim=2), rows)[:, 0], scores)
        if self.training and not torch.jit.is_scripting():
            output["class_rows"] = self._most_like(rows, prob, mask)
        return output

    @torch.jit.unused
    def _answer_bag(self, read: ReadBag) -> dict[str, Tensor]:
        weight = self.second.weight
        pool = RunningPool(1, len(weight), exact_dtype(weight.dtype), weight.device)
        for part in read():
            rows = self._rows(part.T[None])
            pool.add(self._scores(self._probabilities(rows), None)[0], rows[0])
        bag, scores = pool.result()
        return self._answer(bag, scores[None])

    def _answer(self, bag: Tensor, scores: Tensor) -> dict[str, Tensor]:
        return {
            "logits": exact_matmul(bag, self.regressor),
            "attention": torch.softmax(scores, dim=2),
            "attention_logits": scores,
            "bag": bag,
        }

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        return self._scores(self._probabilities(self._rows(image)), mask)

    @torch.no_grad()
    def follow(self, class_rows: Tensor, present: Tensor, momentum: float) -> None:
        """Move the prototypes of the classes that bags have.

        Args:
            class_rows: of the output, ``[b, c, hidden_dim]``.
            present: True where a bag is of a class, ``[b, c]``.
            momentum: ``m``.
        """
        for rows, here in zip(class_rows.to(self.prototypes), present, strict=True):
            moved = F.normalize(momentum * self.prototypes + (1 - momentum) * rows, dim=1)
            self.prototypes.copy_(torch.where(here[:, None], moved, self.prototypes))

    def _rows(self, image: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(image.transpose(1, 2).to(self.first.weight.dtype)))))

    def _probabilities(self, rows: Tensor) -> Tensor:
        """The ``p_i`` ``[b, n, c]``."""
        return torch.softmax(exact_matmul(rows.detach(), self.prototypes.T), dim=2)

    def _scores(self, prob: Tensor, mask: Tensor | None) -> Tensor:
        scores = exact_matmul(prob, self.weigh.weight.T).transpose(1, 2)
        scores = scores.to(exact_dtype(scores.dtype))
        return scores if mask is None else scores.masked_fill(~mask[:, None], -float("inf"))

    @torch.jit.unused
    def _begin(self, rows: Tensor, mask: Tensor | None) -> None:
        """The first bag's mean instance for every prototype, as long as there are none; decided on the device."""
        count = rows.shape[1] if mask is None else mask[0].sum()
        mean = rows[0].detach().sum(dim=0) / count
        self.prototypes.copy_(torch.where(self.prototypes.any(), self.prototypes, mean))

    @torch.jit.unused
    def _most_like(self, rows: Tensor, prob: Tensor, mask: Tensor | None) -> Tensor:
        """The ``h_j`` of every class, ``[b, c, i]``."""
        prob = prob if mask is None else prob.masked_fill(~mask[:, :, None], -1.0)
        place = prob.argmax(dim=1)
        return rows.detach().gather(1, place[:, :, None].expand(-1, -1, rows.shape[2]))

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        network = PSMIL(12, 3, hidden_dim=16)
        network.prototypes.normal_()
        return network, (12,)
