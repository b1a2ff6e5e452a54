"""The L1 norm of a network's parameters as a term of the loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class ParameterL1(nn.Module):
    """``sum |theta| / 2`` over all trainable parameters, biases too; its weight (the paper's alpha) is `MILLoss`'s.

    An optimiser's weight decay is the L2 norm; this one lets single parameters vanish.

    Args:
        network: whose parameters; it does not become a part of the loss.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import ParameterL1
        >>> network = torch.nn.Linear(2, 1)
        >>> _ = network.load_state_dict({"weight": torch.tensor([[1.0, -2.0]]), "bias": torch.tensor([3.0])})
        >>> ParameterL1(network)({}, torch.tensor([1])).item()
        3.0
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._networks = (network,)

    def forward(self, output: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """Scalar, float32 or better; neither argument is read."""
        norms = [value.abs().sum() for value in self._networks[0].parameters() if value.requires_grad]
        if not norms:
            raise ValueError("the network has no trainable parameter")
        return torch.stack(norms).sum() / 2
