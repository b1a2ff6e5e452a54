"""A network that answers with probabilities, to be exported for consumers that make none of its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from monai_mil.networks import check_bag
from monai_mil.networks.blocks import instance_mask
from monai_mil.training.method import build_network


class Probability(nn.Module):
    """Gives what a bundle writes into ``predictions.csv``: ``prob`` of a network that has it, else of its logits.

    Args:
        network: what a config's ``network_def`` says.
        exclusive: the outputs are classes one of which is true, for a softmax; else each is a label of its own, for a
            sigmoid.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import ABMIL
        >>> from monai_mil.training import Probability
        >>> network = Probability(ABMIL(in_channels=8, num_classes=3), exclusive=True)
        >>> network(torch.randn(2, 8, 5)).sum(dim=1).allclose(torch.ones(2))
        True
    """

    def __init__(self, network: nn.Module | Callable[[], nn.Module], exclusive: bool) -> None:
        super().__init__()
        self.network: Any = build_network(network)
        self.exclusive = exclusive

    def forward(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Probabilities ``[b, c]``; see :meth:`monai_mil.networks.MILNetwork.forward`."""
        if torch.jit.is_scripting():  # where a network's own answer is its logits alone
            output = self.network.describe(check_bag(image, instance_mask(mask)), mask)
        else:
            output = self.network(image, mask, return_dict=True)
        if "prob" in output:
            return output["prob"]
        return torch.softmax(output["logits"], dim=1) if self.exclusive else torch.sigmoid(output["logits"])

    @torch.jit.unused
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights of the network, as ``ckpt_export`` and ``onnx_export`` do."""
        return self.network.load_state_dict(state_dict, strict=strict, assign=assign)
