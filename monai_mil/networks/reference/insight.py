"""INSIGHT's public reference: what its parameters are called and how they lie."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from monai_mil.networks.reference.load import check_tensors

CONVOLUTIONS = {
    "reduce_dimension_block.0": "projection.convolution",
    "backbone_block.0": "detection.0.convolution",
    "backbone_block.3": "detection.1.convolution",
    "backbone_block.6": "detection.2.convolution",
    "backbone_block.9": "detection_score",
    "context_block.1": "context.0.convolution",
    "context_block.5": "context.1.convolution",
    "context_block.9": "context.2.convolution",
    "context_block.13": "context_score",
}
"""The reference's names of the convolutions, and ours."""

NORMS = {
    "reduce_dimension_block.2": "projection",
    "backbone_block.2": "detection.0",
    "backbone_block.5": "detection.1",
    "backbone_block.8": "detection.2",
    "context_block.3": "context.0",
    "context_block.7": "context.1",
    "context_block.11": "context.2",
}
"""The reference's names of the normalisations, and our layers that hold them."""


def insight_parameters(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reference's parameters under our names; it normalises ``[channels, h, w]``, here channels are last."""
    return {
        insight_name(name): tensor.float().permute(1, 2, 0) if tensor.dim() == 3 else tensor.float()
        for name, tensor in check_tensors(state_dict).items()
    }


def insight_name(name: str) -> str:
    """This package's name of a parameter of the reference; a name it does not know stays as it is."""
    layer, _, kind = name.rpartition(".")
    if layer in CONVOLUTIONS:
        return f"{CONVOLUTIONS[layer]}.{kind}"
    return f"{NORMS[layer]}.{'scale' if kind == 'weight' else 'shift'}" if layer in NORMS else name
