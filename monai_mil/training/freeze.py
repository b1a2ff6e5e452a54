"""Parts of a network that do not train."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import ignite.distributed as idist
from torch import nn

from monai_mil.errors import SettingsError

logger = logging.getLogger(__name__)


def freeze_parameters(network: nn.Module, patterns: str | Sequence[str]) -> None:
    """Leave parameters as they are: no gradient, no optimiser (:func:`trained_parameters`), no weight decay.

    Running statistics, such as those of a batch norm, that lie under the same names stay too. What trains and what
    does not is told in one line. Call it before a network is wrapped for several processes.

    Args:
        network: not wrapped.
        patterns: names of parts or parameters (``hidden``, ``levels.0.hidden.weight``), or patterns of parameters'
            names (``*.bias``).

    Raises:
        SettingsError: a pattern matches nothing, or nothing would train.

    Examples:
        >>> from monai_mil.networks import ABMIL
        >>> from monai_mil.training import freeze_parameters, trained_parameters
        >>> network = ABMIL(in_channels=16, num_classes=2)
        >>> freeze_parameters(network, ["hidden", "gates"])
        >>> sum(parameter.numel() for parameter in trained_parameters(network))
        1283
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    names = [name for name, _ in (*network.named_parameters(), *network.named_buffers())]
    idle = [pattern for pattern in patterns if not any(_matches(name, pattern) for name in names)]
    if idle:
        parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
        raise SettingsError(f"freeze {idle}: the network has no such part or parameter; its parts are {parts}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not _any_matches(name, patterns))
    if not trained_parameters(network):
        raise SettingsError(f"freeze {patterns}: every parameter is frozen and nothing would train; leave a part out")
    for prefix, module in network.named_modules():
        own = [f"{prefix}.{name}".lstrip(".") for name, _ in module.named_buffers(recurse=False)]
        if any(_any_matches(name, patterns) for name in own):
            module.register_forward_pre_hook(_stand_still)
    if patterns and idist.get_rank() == 0:
        logger.info("freeze: %s", _told(network))


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of a network that are not frozen, for an optimiser."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def frozen_names(network: Any) -> list[str]:
    """Names of the parameters that are frozen; none of what is no network."""
    if not isinstance(network, nn.Module):
        return []
    return [name for name, parameter in network.named_parameters() if not parameter.requires_grad]


def _stand_still(module: nn.Module, inputs: Any) -> None:
    """A trainer switches the whole network to training before every step."""
    module.train(False)


def _any_matches(name: str, patterns: Iterable[str]) -> bool:
    return any(_matches(name, pattern) for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)


def _told(network: nn.Module) -> str:
    sides = {}
    for trains in (True, False):
        own = {name: each.numel() for name, each in network.named_parameters() if each.requires_grad is trains}
        parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in own))
        sides[trains] = f"{sum(own.values()):,} parameters ({parts})"
    return f"{sides[False]} stay as they are, {sides[True]} train"
