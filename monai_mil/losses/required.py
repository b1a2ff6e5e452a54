"""What a loss term asks of a network's output."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def required(
    output: Mapping[str, Tensor], key: str, advice: str = "choose a network that does, or leave the term out"
) -> Tensor:
    """``output[key]``.

    Raises:
        ValueError: the network does not give it; says what it gives, and ``advice``.
    """
    if key not in output:
        raise ValueError(f"the network gives no {key}; its output has {', '.join(sorted(output))}; {advice}")
    return output[key]
