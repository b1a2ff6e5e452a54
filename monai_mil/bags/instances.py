"""What a dictionary of MONAI's pipelines knows of every instance of its bag, and along which axis."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from monai_mil.networks import KEYS


def per_instance(data: Mapping[Any, Any], n: int, but: Container[Any] = ()) -> dict[str, int]:
    """The keys of one bag that hold a value for each of its instances, and the instances' axis of each.

    Args:
        data: the bag and what is known of it.
        n: its number of instances.
        but: keys that are the caller's own business.

    Raises:
        ValueError: a key that :data:`monai_mil.networks.KEYS` does not list has a row for every instance.
    """
    found = {}
    for key, value in data.items():
        if key in but or not isinstance(value, Tensor | np.ndarray | list | tuple):
            continue
        if key in KEYS:
            axis = KEYS[str(key)].axis
            if axis is not None:
                found[str(key)] = axis
        elif isinstance(value, Tensor | np.ndarray) and value.ndim and len(value) == n:
            raise ValueError(
                f"'{key}' {list(value.shape)} seems to have a row for each of {n} instances, and nobody knows how to "
                "sample or pad it: list the key in KEYS of monai_mil.networks.contract, or remove it before "
                "(MONAI's DeleteItemsd)"
            )
    return found
