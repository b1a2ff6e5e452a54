"""MHIM-MIL: masked hard instance mining with a momentum teacher (Tang et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import ChunkedAttentionNetwork, ReadBag, RunningPool, dropped
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul


class MHIMMIL(ChunkedAttentionNetwork):
    """ABMIL that learns from what is left when a teacher has masked the instances that are easy.

    ``h_i = relu(W x_i + b)``; ``s_i = w^T relu(V h_i)``; ``a = softmax(s)``; ``z = sum_i a_i h_i``;
    ``logits = C z + c``.
    In training the student sees no instance that is masked: a share ``masked_random`` of all, and a share
    ``masked_high`` of all from those that the teacher attends to most, both drawn anew in every step. So it has to
    learn from the hard ones. The teacher sees all, without dropout; it is a moving average of the student,
    ``theta' <- m theta' + (1 - m) theta``, updated at the beginning of a training step with the student that the step
    before has left. ``TeacherConsistency`` draws the student's bag to the teacher's. Evaluation is the student's, which
    sees all instances.

    Other than in the released program the share of the most attended stays as it is through a training (there it falls
    along a cosine), and the teacher begins as the student. To begin with one that has learnt, as there, fine-tune a
    first training with ``masked_random``, ``masked_high`` and ``momentum`` 0. The variants over TransMIL and DSMIL are
    not built. At least one instance is kept.

    The output holds ``logits``, ``attention``, ``attention_logits`` and ``bag`` ``[b, hidden_dim]``, in training also
    ``teacher_bag``; ``attention`` is then that without the masked instances, ``attention_logits`` that with all. The
    teacher is in the weights as buffers.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: width of ``h``.
        attention_dim: rows of ``V``.
        dropout: probability of zeroing a value of ``h`` in training, below 1.
        masked_random: share of all instances that is masked, below 1.
        masked_high: share of all instances that is masked for the teacher's attention to them.
        high_part: the part of the most attended instances that is drawn: ``masked_high`` is drawn from the
            ``masked_high / high_part`` most attended.
        momentum: ``m``.

    Raises:
        ValueError: a share is out of range.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import MHIMMIL
        >>> network = MHIMMIL(in_channels=16, num_classes=2, masked_random=0.5)
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> int((output["attention"] > 0).sum()) <= 50  # half of the instances, less some of the most attended
        True
    """

    score_parameters = ("hidden", "query", "score")
    if TYPE_CHECKING:  # TorchScript reads what a class annotates
        teacher_hidden_weight: Tensor
        teacher_hidden_bias: Tensor
        teacher_query_weight: Tensor
        teacher_score_weight: Tensor

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 512,
        attention_dim: int = 128,
        dropout: float = 0.25,
        masked_random: float = 0.5,
        masked_high: float = 0.01,
        high_part: float = 0.5,
        momentum: float = 0.9999,
    ) -> None:
        super().__init__(num_classes)
        shares = {"dropout": dropout, "masked_random": masked_random, "masked_high": masked_high}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {share}")
        if not masked_high <= high_part <= 1 or high_part == 0:
            raise ValueError(f"high_part must be above 0, at least masked_high and at most 1, got {high_part}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be at least 0 and at most 1, got {momentum}")
        self.dropout = dropout
        self.masked_random = masked_random
        self.masked_high = masked_high
        self.high_part = high_part
        self.momentum = momentum
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.query = nn.Linear(hidden_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1, bias=False)
        self.classifier = nn.Linear(hidden_dim, num_classes)
        self.register_buffer("teacher_hidden_weight", self.hidden.weight.detach().clone())
        self.register_buffer("teacher_hidden_bias", self.hidden.bias.detach().clone())
        self.register_buffer("teacher_query_weight", self.query.weight.detach().clone())
        self.register_buffer("teacher_score_weight", self.score.weight.detach().clone())

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        features = image.transpose(1, 2).to(self.hidden.weight.dtype)
        rows = dropped(F.relu(self.hidden(features)), self.dropout, self.training)
        if mask is not None:
            rows = rows.masked_fill(~mask[:, :, None], 0.0)
        scores = self._scores(rows, self.query.weight, self.score.weight, mask)
        if torch.jit.is_scripting() or not self.training:
            return self._pooled(rows, scores, scores)
        return self._train(features, rows, scores, mask)

    @torch.jit.unused
    def _answer_bag(self, read: ReadBag) -> dict[str, Tensor]:
        weight = self.hidden.weight
        pool = RunningPool(1, len(weight), exact_dtype(weight.dtype), weight.device)
        for part in read():
            rows = F.relu(self.hidden(part.to(weight.dtype)))[None]
            pool.add(self._scores(rows, self.query.weight, self.score.weight, None)[0], rows[0])
        bag, scores = pool.result()
        return self._answer(bag, torch.softmax(scores[None], dim=2), scores[None])

    @torch.jit.unused
    def _train(self, features: Tensor, rows: Tensor, scores: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The output of a training step, and the teacher's step before it."""
        self._follow()
        with torch.no_grad():
            taught = F.relu(F.linear(features, self.teacher_hidden_weight, self.teacher_hidden_bias))
            if mask is not None:
                taught = taught.masked_fill(~mask[:, :, None], 0.0)
            guide = self._scores(taught, self.teacher_query_weight, self.teacher_score_weight, mask)
            kept = self._draw_kept(guide[:, 0])
            teacher_bag = exact_matmul(torch.softmax(guide, dim=2), taught)[:, 0]
        output = self._pooled(rows, scores.masked_fill(~kept[:, None], -float("inf")), scores)
        output["teacher_bag"] = teacher_bag
        return output

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        rows = F.relu(self.hidden(image.transpose(1, 2).to(self.hidden.weight.dtype)))
        return self._scores(rows, self.query.weight, self.score.weight, mask)

    def _scores(self, rows: Tensor, query: Tensor, score: Tensor, mask: Tensor | None) -> Tensor:
        scores = F.linear(F.relu(F.linear(rows, query)), score).transpose(1, 2)
        scores = scores.to(exact_dtype(scores.dtype))
        return scores if mask is None else scores.masked_fill(~mask[:, None], -float("inf"))

    def _pooled(self, rows: Tensor, seen: Tensor, scores: Tensor) -> dict[str, Tensor]:
        attention = torch.softmax(seen, dim=2)
        return self._answer(exact_matmul(attention, rows)[:, 0], attention, scores)

    def _answer(self, bag: Tensor, attention: Tensor, scores: Tensor) -> dict[str, Tensor]:
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": attention,
            "attention_logits": scores,
            "bag": bag,
        }

    def _draw_kept(self, guide: Tensor) -> Tensor:
        """Which instances the student sees in this step: from the teacher's scores ``[b, n]`` to bool ``[b, n]``."""
        real = guide > -float("inf")
        count = real.sum(dim=1, keepdim=True)
        place = self._draw_places(real)
        hidden = place < (count * self.masked_random).ceil()
        if self.masked_high > 0:
            top = (count * (self.masked_high / self.high_part)).ceil()
            high = guide.argsort(dim=1, descending=True).argsort(dim=1) < top
            hidden = hidden | (self._draw_places(high & real) < (top * self.high_part).ceil())
        kept = real & ~hidden
        return kept | (~kept.any(dim=1, keepdim=True) & (place == count - 1))

    def _draw_places(self, among: Tensor) -> Tensor:
        """Random places, from 0, of those that are True ``[b, n]``; all others come behind."""
        drawn = torch.rand(among.shape, device=among.device).masked_fill(~among, 2.0)
        return drawn.argsort(dim=1).argsort(dim=1)

    @torch.no_grad()
    def _follow(self) -> None:
        """One step of the teacher's moving average."""
        pairs = [
            (self.teacher_hidden_weight, self.hidden.weight),
            (self.teacher_hidden_bias, self.hidden.bias),
            (self.teacher_query_weight, self.query.weight),
            (self.teacher_score_weight, self.score.weight),
        ]
        for teacher, student in pairs:
            teacher.lerp_(student.to(teacher.dtype), 1 - self.momentum)

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        return MHIMMIL(12, 3, hidden_dim=16, attention_dim=8, dropout=0.0), (12,)
