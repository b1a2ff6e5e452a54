"""How an engine asks a network for its whole output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.inferers import Inferer
from torch import Tensor


class FullOutputInferer(Inferer):
    """Calls ``network(inputs, return_dict=True)``: what a trainer with a :class:`monai_mil.losses.MILLoss` needs."""

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The output dict; further arguments (the ``mask``) go to the network."""
        return network(inputs, *args, return_dict=True, **kwargs)
