"""The network of a config that offers several methods, and what a network is in words."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from monai_mil.training.distributed import unwrap
from monai_mil.training.exported import ExportedNetwork, as_network
from monai_mil.training.freeze import freeze_parameters

_TRAINING_ALONE = {
    "dropout", "attention_dropout", "gate_dropout", "drop", "drop_mode", "sampled", "k_train", "checkpoint",
    "masked", "mask_drop", "masked_random", "masked_high", "high_part", "momentum",
}  # fmt: skip
_SEEN_BY_THE_WEIGHTS = {"num_classes", "in_channels", "in_features", "out_features", "attention_dim"}
_NO_RESULT = {"chunk_instances", "chunk_tokens"}


def build_network(
    network_def: nn.Module | Callable[[], nn.Module], freeze: str | Sequence[str] | None = None
) -> nn.Module:
    """What a config's ``network_def`` says.

    Args:
        network_def: a network, or an entry of the config's ``methods`` (``--network_def "%methods::NAME"`` copies it),
            which builds one; or an exported program (``--network_def "$torch.jit.load('model.ts')"``), which becomes an
            :class:`ExportedNetwork`.
        freeze: names of what is not to train; see :func:`freeze_parameters`.
    """
    network_def = as_network(network_def)
    network = network_def if isinstance(network_def, nn.Module) else network_def()
    if freeze:
        freeze_parameters(network, freeze)
    return network


def describe_network(network: nn.Module) -> dict[str, Any]:
    """A network's class, and the numbers and words it and its parts were made with, as far as they change its answers.

    Args:
        network: any; a DDP wrapper is taken off.

    Returns:
        ``class``, and ``name`` or ``part.name`` for every argument that a network of this package keeps; nothing of an
        exported program, which does not say.

    Examples:
        >>> from monai_mil.networks import INSIGHT
        >>> from monai_mil.training import describe_network
        >>> description = describe_network(INSIGHT(38, 2, alpha=4.0))
        >>> description["class"], description["alpha"]
        ('INSIGHT', 4.0)
    """
    if isinstance(network, ExportedNetwork):
        return {}
    network, left_out = unwrap(network), _TRAINING_ALONE | _SEEN_BY_THE_WEIGHTS | _NO_RESULT
    kept: dict[str, Any] = {"class": type(network).__name__}
    for part, module in network.named_modules():
        if not type(module).__module__.startswith("monai_mil."):
            continue
        for name in inspect.signature(type(module).__init__).parameters:
            value = getattr(module, name, None)
            if isinstance(value, bool | int | float | str) and name not in left_out:
                kept[f"{part}.{name}".lstrip(".")] = value
    return kept
