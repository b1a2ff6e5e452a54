"""The sum of weighted loss terms that a MONAI trainer calls."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_mil.losses.bag import BagCrossEntropy


class MILLoss(nn.Module):
    """``sum_k weights[k] * terms[k](output, label)``, in float32.

    Args:
        terms: loss modules by name; each takes the network's output dict and the label and returns a scalar.
        weights: factor of each term, 1 where none is given; a term of weight 0 is not computed.

    Attributes:
        last: the unweighted, detached value of every term in the latest call, for logging.

    Raises:
        ValueError: there is no term, all weights are 0, or a weight names none.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import BagCrossEntropy, MaxInstance, MILLoss
        >>> loss = MILLoss({"bag": BagCrossEntropy(), "max": MaxInstance(BagCrossEntropy())}, {"bag": 0.5, "max": 0.5})
        >>> output = {"logits": torch.zeros(1, 2), "instance_logits": torch.zeros(1, 2, 5)}
        >>> round(loss(output, torch.tensor([1])).item(), 4)
        0.6931
        >>> {name: round(value.item(), 4) for name, value in loss.last.items()}
        {'bag': 0.6931, 'max': 0.6931}
    """

    def __init__(
        self, terms: Mapping[str, nn.Module] | None = None, weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        self.terms = nn.ModuleDict({"bag": BagCrossEntropy()} if terms is None else terms)
        self.weights = dict.fromkeys(self.terms, 1.0) | dict(weights or {})
        self.last: dict[str, Tensor] = {}
        if unknown := set(self.weights) - set(self.terms):
            raise ValueError(f"weights without a term: {', '.join(sorted(unknown))}; terms: {', '.join(self.terms)}")
        if not any(self.weights.values()):
            raise ValueError("a loss needs at least one term with a weight other than 0")

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """The weighted sum, a scalar.

        Args:
            output: what the network returned with ``return_dict=True``.
            label: ``[b]`` class indices, or ``[b, c]`` for multi-label tasks.
        """
        values = {name: term(output, label) for name, term in self.terms.items() if self.weights[name]}
        self.last = {name: value.detach() for name, value in values.items()}
        return torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
