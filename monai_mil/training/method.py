"""The network of a config that offers several methods."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def build_network(network_def: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """What a config's ``network_def`` says.

    Args:
        network_def: a network, or an entry of the config's ``methods`` (``--network_def "%methods::NAME"`` copies it),
            which builds one.
    """
    return network_def if isinstance(network_def, nn.Module) else network_def()
