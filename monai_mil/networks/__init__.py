"""MIL networks, one method a file; :mod:`monai_mil.networks.contract` tells what they all accept and return."""

from __future__ import annotations

from monai_mil.networks.abmil import ABMIL
from monai_mil.networks.acmil import ACMIL
from monai_mil.networks.asmil import ASMIL
from monai_mil.networks.camil import CAMIL
from monai_mil.networks.clam import CLAM_MB, CLAM_SB
from monai_mil.networks.contract import (
    KEYS,
    MILNetwork,
    check_bag,
    exact_dtype,
    exact_matmul,
    instance_axis,
    instance_scores,
)
from monai_mil.networks.deep_attn_misl import DeepAttnMISL
from monai_mil.networks.demil import DEMIL
from monai_mil.networks.dsmil import DSMIL
from monai_mil.networks.dtfd import DTFDMIL
from monai_mil.networks.feature_pooling import FeatureMaxPooling, FeatureMeanPooling
from monai_mil.networks.grad_cam import grad_cam
from monai_mil.networks.hagmil import HAGMIL
from monai_mil.networks.hdmil import HDMIL
from monai_mil.networks.iat import IAT
from monai_mil.networks.ibmil import IBMIL
from monai_mil.networks.ilra import ILRA
from monai_mil.networks.insight import INSIGHT
from monai_mil.networks.instance_encoder import InstanceEncoderMIL
from monai_mil.networks.lipn import LIPN
from monai_mil.networks.mhim import MHIMMIL
from monai_mil.networks.patch_gcn import PatchGCN
from monai_mil.networks.pooling import MaxPooling, MeanPooling
from monai_mil.networks.prediction_abmil import PredictionABMIL
from monai_mil.networks.psmil import PSMIL
from monai_mil.networks.r2t import R2T
from monai_mil.networks.rgmil import RGMIL
from monai_mil.networks.slice_abmil import SliceABMIL
from monai_mil.networks.slice_classifier import SliceClassifier
from monai_mil.networks.smooth_abmil import SmoothABMIL
from monai_mil.networks.smooth_transformer1d import SmoothTransformer1D
from monai_mil.networks.transmil import TransMIL
from monai_mil.networks.transmil1d import TransMIL1D
from monai_mil.networks.volume_classifier import VolumeClassifier
from monai_mil.networks.wikg import WiKG

__all__ = [
    "ABMIL",
    "ACMIL",
    "ASMIL",
    "CAMIL",
    "CLAM_MB",
    "CLAM_SB",
    "DEMIL",
    "DSMIL",
    "DTFDMIL",
    "HAGMIL",
    "HDMIL",
    "IAT",
    "IBMIL",
    "ILRA",
    "INSIGHT",
    "KEYS",
    "LIPN",
    "MHIMMIL",
    "PSMIL",
    "R2T",
    "RGMIL",
    "DeepAttnMISL",
    "FeatureMaxPooling",
    "FeatureMeanPooling",
    "InstanceEncoderMIL",
    "MILNetwork",
    "MaxPooling",
    "MeanPooling",
    "PatchGCN",
    "PredictionABMIL",
    "SliceABMIL",
    "SliceClassifier",
    "SmoothABMIL",
    "SmoothTransformer1D",
    "TransMIL",
    "TransMIL1D",
    "VolumeClassifier",
    "WiKG",
    "check_bag",
    "exact_dtype",
    "exact_matmul",
    "grad_cam",
    "instance_axis",
    "instance_scores",
]
