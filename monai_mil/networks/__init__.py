"""MIL networks, one method a file; :mod:`monai_mil.networks.contract` tells what they all accept and return."""

from __future__ import annotations

from monai_mil.networks.abmil import ABMIL
from monai_mil.networks.contract import MILNetwork, instance_scores
from monai_mil.networks.instance_encoder import InstanceEncoderMIL
from monai_mil.networks.pooling import MaxPooling, MeanPooling

__all__ = ["ABMIL", "InstanceEncoderMIL", "MILNetwork", "MaxPooling", "MeanPooling", "instance_scores"]
