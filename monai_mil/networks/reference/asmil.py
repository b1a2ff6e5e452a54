"""Checkpoints of the released ASMIL: one attention block a token there, stacked tensors here."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from monai_mil.networks.reference.load import check_tensors

BLOCK = {
    r"q_proj\.(weight|bias)": r"query.\1",
    r"k_proj\.(weight|bias)": r"key.\1",
    r"v_proj\.(weight|bias)": r"value.\1",
    r"out_proj\.(weight|bias)": r"output.\1",
    r"layer_norm\.(weight|bias)": r"norm_\1",
}
"""Names within one of the reference's blocks and those within this package's."""

STACKED = {
    r"sub_attention\.(\d+)\.(.*)": "attention.",
    r"classifier\.(\d+)\.fc\.(.*)": "token_classifier.",
    r"bag_attention()\.(.*)": "bag_attention.",
}
"""Parameters of the reference of which there is one a token, with its number, or which stand alone in a stack."""


def asmil_parameters(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 parameters of the released ASMIL under this package's names; names it does not know are kept."""
    parameters: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in check_tensors(state_dict).items():
        stack = _place_in_stack(name)
        if stack:
            stacks.setdefault(stack[0], {})[stack[1]] = tensor.float()
        elif name in ("q", "cls"):
            parameters["attention.token" if name == "q" else "bag_attention.token"] = tensor.float()[0]
        elif not name.startswith("dimreduction.bn."):
            name = name.replace("dimreduction.fc1.", "hidden.").replace("Slide_classifier.fc.", "classifier.")
            parameters[name] = tensor.float()
    for name, parts in stacks.items():
        if sorted(parts) != list(range(len(parts))):
            raise ValueError(f"not ASMIL's state dict: of '{name}' it has the tokens {sorted(parts)} only")
        parameters[name] = torch.stack([parts[index] for index in sorted(parts)])
    return parameters


def _place_in_stack(name: str) -> tuple[str, int] | None:
    """This package's name of a stacked parameter and the place in the stack; None for any other parameter."""
    for theirs, ours in STACKED.items():
        match = re.fullmatch(theirs, name)
        if match:
            inner = match[2]
            for pattern, replacement in BLOCK.items():
                inner = re.sub(rf"^{pattern}$", replacement, inner)
            return ours + inner, int(match[1] or 0)
    return None
