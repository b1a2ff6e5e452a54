"""Attention over single slices' predictions: ABMIL at the prediction level."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_mil.networks.blocks import AttentionNetwork
from monai_mil.networks.contract import exact_matmul


class PredictionABMIL(AttentionNetwork):
    """Classify every slice, then pool what was said of them with attention to it: Normal Guidance's "prediction level".

    ``g_i = C x_i + c``; ``s_i = w^T tanh(V g_i + v) + b``; ``a = softmax(s)`` over the slices;
    ``logits = sum_i a_i g_i``. The order of the slices does not matter.

    With ``MeanPooling`` and ``MaxPooling`` of ``hidden_dim`` None it makes up what the paper's program pools at the
    prediction level; there is one output there, so that ``V`` sees one number a slice.

    The output holds ``logits``, ``attention``, ``attention_logits``, ``instance_logits`` ``[b, c, n]`` (``-inf`` on
    padding) and, as ``instance_scores``, their sigmoid.

    Args:
        in_channels: ``d``, width of a slice's features.
        num_classes: ``c``.
        attention_dim: rows of ``V``.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import PredictionABMIL
        >>> network = PredictionABMIL(in_channels=16, num_classes=1)
        >>> output = network(torch.randn(1, 16, 40), return_dict=True)
        >>> pooled = (output["attention"] * output["instance_logits"]).sum(dim=2)
        >>> torch.allclose(pooled, output["logits"], atol=1e-6)
        True
    """

    score_parameters = ("classifier", "hidden", "score")

    def __init__(self, in_channels: int, num_classes: int, attention_dim: int = 128) -> None:
        super().__init__(num_classes)
        self.classifier = nn.Linear(in_channels, num_classes)
        self.hidden = nn.Linear(num_classes, attention_dim)
        self.score = nn.Linear(attention_dim, 1)

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        evidence, scores = self._evidence_and_scores(image, mask)
        attention = torch.softmax(scores, dim=2)
        logits = exact_matmul(evidence, attention.transpose(1, 2))[:, :, 0]
        probability = torch.sigmoid(evidence)
        if mask is not None:
            probability = probability.masked_fill(~mask[:, None], 0.0)
            evidence = evidence.masked_fill(~mask[:, None], -float("inf"))
        return {
            "logits": logits,
            "attention": attention,
            "attention_logits": scores,
            "instance_logits": evidence,
            "instance_scores": probability,
        }

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        return self._evidence_and_scores(image, mask)[1]

    def _evidence_and_scores(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """``g`` ``[b, c, n]``, 0 on padding, and attention before softmax ``[b, 1, n]``, ``-inf`` on padding."""
        image = image.to(self.classifier.weight.dtype)
        evidence = exact_matmul(self.classifier.weight, image) + self.classifier.bias[:, None]
        if mask is not None:
            evidence = evidence.masked_fill(~mask[:, None], 0.0)
        hidden = torch.tanh(exact_matmul(self.hidden.weight, evidence) + self.hidden.bias[:, None])
        scores = exact_matmul(self.score.weight, hidden) + self.score.bias
        return evidence, scores if mask is None else scores.masked_fill(~mask[:, None], -float("inf"))
