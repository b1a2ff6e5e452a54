"""Files that are whole whenever they exist and that load with ``weights_only=True``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_mil.files import replacing


def save_atomically(state: Any, path: Path) -> None:
    """``torch.save`` to a temporary name beside ``path``, then rename; numpy values become plain ones."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(plain(state), file)


def plain(state: Any) -> Any:
    """``state`` with numpy scalars as Python numbers and arrays as tensors: all that a weights-only load accepts."""
    if isinstance(state, np.generic):
        return state.item()
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state.copy())
    if type(state) is dict:
        return {plain(key): plain(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(plain(value) for value in state)
    return state
