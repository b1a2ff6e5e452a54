"""Reading the checkpoints that the papers' authors released into this package's networks."""

from __future__ import annotations

from monai_mil.networks.reference.asmil import asmil_parameters
from monai_mil.networks.reference.insight import insight_parameters
from monai_mil.networks.reference.load import check_tensors, class_count, load_reference, reference_parameters, size_of

__all__ = [
    "asmil_parameters",
    "check_tensors",
    "class_count",
    "insight_parameters",
    "load_reference",
    "reference_parameters",
    "size_of",
]
