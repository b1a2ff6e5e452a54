"""HDMIL's dynamic multi-instance network: attention that screens instances (Dong et al., CVPR 2025)."""

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
    most_and_least_attended,
)
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul


class HDMIL(ChunkedAttentionNetwork):
    """Multiple-branch CLAM with Chebyshev classifiers that learns to answer from a small part of the instances.

    ``h_i = relu(W x_i + b)``; every class has its own gated attention ``s_ci``. In training it answers twice: from all
    instances, ``a_c = softmax(s_c)``; ``z_c = sum_i a_ci h_i``; ``logits_c = f_c(z_c)``; and from those that a draw
    keeps, ``k_ci = sigmoid((s_ci + g) / 0.7) > 1/2`` with logistic noise ``g`` and a straight-through gradient, whose
    attention is ``k_ci exp(s_ci)`` over its sum. ``ScreeningLoss`` draws the second answer and its bag to the first,
    and the share of instances that any class keeps to a ratio. Evaluation keeps the instances with ``s_ci > 0``, or the
    most attended one where there is none, and answers from them.
    ``f(z) = sum_jd T_d(tanh z_j) w_jd``, Chebyshev polynomials up to ``degree``; the instance branch has such
    classifiers too, taught by ``InstanceSmoothSVM`` as in CLAM.

    This is the paper's first stage; its second, a light network that screens tiles by their pictures at low
    magnification before any feature is computed, is ``LIPN``. Other than in the released program the attention of
    kept instances sums to 1 in every class while training too (there it does over all classes together), every class
    counts for the share (there the first two), and dropout stands behind ``h`` alone.

    The output holds ``logits``, ``attention``, that of the answer, and ``attention_logits`` of one head a class,
    ``bag`` ``[b, c * hidden_dim]``, the attention as ``instance_scores``, and, unless ``sampled`` is 0 or the bag comes
    in chunks, ``top_instance_logits`` and ``bottom_instance_logits`` as :class:`CLAM_SB`; in training also
    ``screened_logits``, ``screened_bag`` and ``screened_share`` ``[b]``.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: width of ``h``.
        attention_dim: rows of each gate.
        degree: highest of the polynomials.
        dropout: probability of zeroing a value of ``h`` in training, below 1.
        sampled: instances of each kind that the instance branch sees; 0 for a network without it.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import HDMIL
        >>> network = HDMIL(in_channels=16, num_classes=2, hidden_dim=32).eval()
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> bool(((output["attention"] > 0) <= (output["attention_logits"] > 0)).all())  # only those are kept
        True
    """

    score_parameters = ("hidden", "attention")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 512,
        attention_dim: int = 256,
        degree: int = 12,
        dropout: float = 0.25,
        sampled: int = 8,
    ) -> None:
        super().__init__(num_classes)
        if not 0 <= dropout < 1 or degree < 1 or sampled < 0:
            raise ValueError(
                f"dropout must be in [0, 1), degree at least 1, sampled at least 0, got {dropout}, {degree}, {sampled}"
            )
        self.dropout = dropout
        self.sampled = sampled
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.attention = GatedAttention(hidden_dim, attention_dim, num_classes)
        self.classifier = ChebyshevClassifiers(num_classes, hidden_dim, degree)
        self.branch = ChebyshevClassifiers(num_classes, hidden_dim, degree, evidence=True) if sampled else None

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        rows = dropped(self._rows(image), self.dropout, self.training)
        if mask is not None:
            rows = rows.masked_fill(~mask[:, :, None], 0.0)
        scores = self.attention(rows, mask)
        kept = scores if self.training else self._screened(scores)
        attention = torch.softmax(kept, dim=2)
        output = self._answer(exact_matmul(attention, rows), attention, scores)
        if torch.jit.is_scripting():
            return output
        if self.training:
            output.update(self._screen_in_training(rows, scores))
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            return output
        return self._with_branch(output, rows, image, mask)

    @torch.jit.unused
    def _in_chunks(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        return self._with_branch(super()._in_chunks(image, mask), None, image, mask)

    @torch.jit.unused
    def _answer_bag(self, read: ReadBag) -> dict[str, Tensor]:
        weight = self.hidden.weight
        pool = _ScreenedPool(self.num_classes, len(weight), exact_dtype(weight.dtype), weight.device)
        for part in read():
            rows = self._rows(part.T[None])
            pool.add(self.attention(rows, None)[0], rows[0])
        bag, scores = pool.result()
        return self._answer(bag[None], torch.softmax(self._screened(scores[None]), dim=2), scores[None])

    def _answer(self, bag: Tensor, attention: Tensor, scores: Tensor) -> dict[str, Tensor]:
        return {
            "logits": self.classifier(bag),
            "attention": attention,
            "attention_logits": scores,
            "bag": bag.flatten(1),
            "instance_scores": attention,
        }

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        return self.attention(self._rows(image), mask)

    def _rows(self, image: Tensor) -> Tensor:
        return F.relu(self.hidden(image.transpose(1, 2).to(self.hidden.weight.dtype)))

    def _screened(self, scores: Tensor) -> Tensor:
        """Scores ``[b, c, n]`` with ``-inf`` for instances that are not kept."""
        most = scores == scores.amax(dim=2, keepdim=True)
        return scores.masked_fill(~((scores > 0) | most), -float("inf"))

    @torch.jit.unused
    def _screen_in_training(self, rows: Tensor, scores: Tensor) -> dict[str, Tensor]:
        """The second answer, from the instances that are drawn."""
        real = scores > -float("inf")
        uniform = torch.rand_like(scores).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((scores.masked_fill(~real, 0.0) + uniform.logit()) / 0.7)
        kept = (((soft > 0.5).to(soft.dtype) - soft).detach() + soft) * real
        weight = (scores - scores.amax(dim=2, keepdim=True)).exp() * kept
        bag = exact_matmul(weight / weight.sum(dim=2, keepdim=True).clamp(min=1e-16), rows)
        number = kept.sum(dim=1)
        union = ((number > 0).to(number.dtype) - number).detach() + number
        share = union.sum(dim=1) / real[:, 0].sum(dim=1)
        return {"screened_logits": self.classifier(bag), "screened_bag": bag.flatten(1), "screened_share": share}

    @torch.jit.unused
    def _with_branch(
        self, output: dict[str, Tensor], rows: Tensor | None, image: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """The output with the extreme instances' class evidence, whose rows are made anew where none are given."""
        if self.branch is None:
            return output
        top, top_real, bottom, bottom_real = most_and_least_attended(output["attention_logits"], mask, self.sampled)
        for key, index, real in (("top", top, top_real), ("bottom", bottom, bottom_real)):
            places = index.flatten(1)
            if rows is None:
                found = self._rows(image.gather(2, places[:, None].expand(-1, image.shape[1], -1)))
            else:
                found = rows.gather(1, places[:, :, None].expand(-1, -1, rows.shape[2]))
            evidence = self.branch(found.unflatten(1, index.shape[1:]).transpose(1, 2)).transpose(1, 2)
            output[f"{key}_instance_logits"] = evidence.masked_fill(~real, -float("inf"))
        return output

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        network = HDMIL(12, 3, hidden_dim=16, attention_dim=8, degree=3, dropout=0.0, sampled=2)
        with torch.no_grad():
            network.attention.score.weight *= 8  # few scores are so near 0 that rounding decides who is kept
        return network, (12,)


class _ScreenedPool(RunningPool):
    """Of the rows with a score above 0 only, or of the most attended alone as long as there is none."""

    def _weights(self, scores: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        shrink, share = super()._weights(scores, bound)
        kept_before = (self.largest > 0) | (self.largest == bound)
        return shrink * kept_before, share * ((scores > 0) | (scores == bound))


class ChebyshevClassifiers(nn.Module):
    """For every class ``f(z) = sum_jd T_d(tanh z_j) w_jd``, Chebyshev polynomials of the first kind.

    Args:
        count: ``c``.
        width: of ``z``.
        degree: highest ``d``.
        evidence: of two such functions, "not this class" and "this class", give the difference, in which all their
            losses are.
    """

    def __init__(self, count: int, width: int, degree: int, evidence: bool = False) -> None:
        super().__init__()
        self.degree = degree
        outputs = 2 if evidence else 1
        weight = torch.empty(count, width, outputs, degree + 1)
        for one in weight:
            nn.init.xavier_normal_(one)
        self.weight = nn.Parameter((weight[:, :, 1] - weight[:, :, 0]) if evidence else weight[:, :, 0].clone())

    def forward(self, rows: Tensor) -> Tensor:
        """``[..., c, width]`` to ``[..., c]``, float32 or better."""
        point = torch.tanh(rows.to(exact_dtype(rows.dtype)))
        weight = self.weight.to(point.dtype)
        before, now = torch.ones_like(point), point
        total = (weight[:, :, 0] + now * weight[:, :, 1]).sum(dim=-1)
        for degree in range(2, self.degree + 1):
            before, now = now, 2 * point * now - before
            total = total + (now * weight[:, :, degree]).sum(dim=-1)
        return total
