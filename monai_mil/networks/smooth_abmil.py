"""Smooth attention pooling: ABMIL over slices whose neighbours share what they show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import SmoothOperator
from monai_mil.networks.contract import MILNetwork, exact_matmul
from monai_mil.networks.reference import class_count, load_reference, reference_parameters, size_of


class SmoothABMIL(MILNetwork):
    """Plain ABMIL with the smooth operator ``S`` (``networks.blocks.smooth``), the SmAP of Castro-Macías 2024.

    ``placement="early"`` smooths the features, ``x <- S x``, before ``s_i = w^T tanh(V x_i + b) + b'`` and
    ``z = sum_i a_i x_i``; ``V`` and ``w`` are divided by their largest singular value. As ``S`` acts on slices and
    ``V`` on channels, ``V S x = S V x`` and ``a^T S x = (S^T a)^T x``: only the ``attention_dim`` columns of ``V x``
    and one row of attention are smoothed, never the features. ``placement="late"`` smooths the scores ``s``.

    The output holds ``logits``, ``attention``, ``attention_logits`` and ``bag`` ``[b, d]``; a slice's score is its
    attention. A bag is worked on whole, its slices in scan order, in memory that grows with their number.

    Args:
        in_channels: ``d``, width of a slice's features.
        num_classes: ``c``.
        attention_dim: rows of ``V``.
        placement: ``"early"`` or ``"late"``.
        neighbours: reach of one averaging step, in slices.
        steps: number of averaging steps.
        exact: solve for the limit of infinitely many steps instead.

    Raises:
        ValueError: ``placement``, ``neighbours`` or ``steps`` is none of these.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import SmoothABMIL
        >>> network = SmoothABMIL(in_channels=16, num_classes=2, placement="late", steps=2)
        >>> output = network(torch.randn(1, 16, 40), return_dict=True)
        >>> list(output["attention"].shape), list(output["bag"].shape)
        ([1, 1, 40], [1, 16])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        attention_dim: int = 128,
        placement: str = "early",
        neighbours: int = 1,
        steps: int = 10,
        exact: bool = False,
    ) -> None:
        super().__init__(num_classes)
        if placement not in ("early", "late"):
            raise ValueError(f"placement must be 'early' or 'late', got '{placement}'")
        self.early = placement == "early"
        self.hidden = ScaledLinear(in_channels, attention_dim, spectral=self.early)
        self.score = ScaledLinear(attention_dim, 1, spectral=self.early)
        self.smooth = SmoothOperator(neighbours, steps, exact)
        self.classifier = nn.Linear(in_channels, num_classes)

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        image = image.to(self.classifier.weight.dtype)
        evidence = torch.matmul(self.hidden.scaled_weight(), image)
        if self.early:
            evidence = self.smooth(evidence, mask)
        hidden = torch.tanh(evidence + self.hidden.bias[:, None])
        scores = exact_matmul(self.score.scaled_weight(), hidden) + self.score.bias
        if not self.early:
            scores = self.smooth(scores, mask)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -float("inf"))
            image = image.masked_fill(~mask[:, None], 0.0)
        attention = torch.softmax(scores, dim=2)
        weights = self.smooth(attention, mask, transposed=True) if self.early else attention
        bag = exact_matmul(weights, image.transpose(1, 2)).squeeze(1)
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": attention,
            "attention_logits": scores,
            "bag": bag,
        }

    @classmethod
    def from_reference(
        cls, state_dict: Mapping[str, Tensor], neighbours: int = 1, steps: int = 10, exact: bool = False
    ) -> SmoothABMIL:
        """The reference's SmAP pooling, with its classifier where the checkpoint has one.

        Args:
            state_dict: parameters and buffers under the reference's names; spectral norms mean early placement.
            neighbours: as in the constructor; a checkpoint does not tell.
            steps: likewise.
            exact: likewise.

        Raises:
            ValueError: the names or shapes are another network's.
        """
        names = {}
        for theirs, ours in (("mlp.0.", "hidden."), ("mlp.2.", "score.")):
            names[f"{theirs}parametrizations.weight.original"] = f"{ours}weight"
            names[f"{theirs}parametrizations.weight.0._u"] = f"{ours}left"
            names[f"{theirs}parametrizations.weight.0._v"] = f"{ours}right"
            names[theirs] = ours
        parameters = reference_parameters(state_dict, names | {"sm_layer.": "smooth."})
        attention_dim, in_channels = (size_of(parameters, "hidden.weight", axis) for axis in (0, 1))
        placement = "early" if "hidden.left" in parameters else "late"
        network = cls(in_channels, class_count(parameters), attention_dim, placement, neighbours, steps, exact)
        load_reference(network, parameters)
        return network


class ScaledLinear(nn.Linear):
    """A linear layer whose weight may be divided by its largest singular value (Miyato et al. 2018).

    The singular vectors are followed by one power iteration at every training step.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        spectral: divide; if not, this is a linear layer.
    """

    if TYPE_CHECKING:  # TorchScript would read the annotations
        left: Tensor
        right: Tensor

    def __init__(self, in_features: int, out_features: int, spectral: bool) -> None:
        super().__init__(in_features, out_features)
        self.spectral = spectral
        sizes = (out_features, in_features) if spectral else (0, 0)
        self.register_buffer("left", F.normalize(torch.randn(sizes[0]), dim=0), persistent=spectral)
        self.register_buffer("right", F.normalize(torch.randn(sizes[1]), dim=0), persistent=spectral)
        for _ in range(15 if spectral else 0):
            self._power_iteration()

    def scaled_weight(self) -> Tensor:
        """``W`` or ``W / sigma``, ``[out_features, in_features]``."""
        if not self.spectral:
            return self.weight
        if self.training:
            self._power_iteration()
        left, right = self.left.clone(), self.right.clone()  # the next iteration must not spoil this one's gradient
        return self.weight / (left[:, None] * self.weight * right).sum()

    def _power_iteration(self) -> None:
        with torch.no_grad():
            weight = self.weight.detach()
            self.left.copy_(F.normalize((weight * self.right).sum(dim=1), dim=0))
            self.right.copy_(F.normalize((weight * self.left[:, None]).sum(dim=0), dim=0))
