"""How an engine asks a network for its whole output, or takes the one there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.inferers import Inferer
from torch import Tensor

from monai_mil.training.exported import as_network


class FullOutputInferer(Inferer):
    """Calls ``network(inputs, return_dict=True)``: what a trainer with a :class:`monai_mil.losses.MILLoss` needs.

    An exported program is asked for whatever it can give, see :class:`ExportedNetwork`.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import ABMIL
        >>> from monai_mil.training import FullOutputInferer
        >>> output = FullOutputInferer()(torch.randn(1, 8, 5), ABMIL(in_channels=8, num_classes=2))
        >>> sorted(output)
        ['attention', 'attention_logits', 'bag', 'logits']
    """

    def __call__(
        self,
        inputs: Tensor,
        network: Callable[..., Any],
        *args: Any,
        positions: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """The output dict.

        Args:
            inputs: the bags.
            network: what is asked.
            args: go to the network.
            positions: of the instances, ``[b, n]`` or ``[b, n, 2]``; networks do not take them, the output has them
                as ``positions``.
            kwargs: go to the network, such as the ``mask``.
        """
        output = as_network(network)(inputs, *args, return_dict=True, **kwargs)
        return output if positions is None else {**output, "positions": positions}


class StreamedInferer(Inferer):
    """Takes the output that :class:`monai_mil.embedding.StreamSlided` has made while the slide was read."""

    def __call__(
        self, inputs: Tensor, network: Callable[..., Any], *args: Any, streamed: dict[str, Tensor], **kwargs: Any
    ) -> dict[str, Tensor]:
        """The output dict, as from :class:`FullOutputInferer`.

        Args:
            inputs: not looked at, as everything but ``streamed``.
            network: the one that has answered already.
            args: none.
            streamed: its output, see :func:`prepare_streamed_batch`.
            kwargs: none.
        """
        return streamed
