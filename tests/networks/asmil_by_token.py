"""The straightforward ASMIL that the benchmark measures against, as tests import it."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from tests.conftest import ROOT

_spec = importlib.util.spec_from_file_location("asmil_by_token", ROOT / "scripts/benchmarks/asmil_by_token.py")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
ByToken = _module.ByToken


def heads_tokens(scores: Tensor) -> Tensor:
    """Scores of one bag as the reference orders them, ``[1, t h, n]`` to ``[h, t, n]``, of eight heads."""
    return scores[0].unflatten(0, (-1, 8)).transpose(0, 1)


def normalised_sigmoid(scores: Tensor, temperature: float = 1.0) -> Tensor:
    """Eq. 5 as it is written."""
    sigmoid = torch.sigmoid(scores / temperature)
    return sigmoid / sigmoid.sum(dim=-1, keepdim=True)
