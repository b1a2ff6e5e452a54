"""Bag losses and regularisers; each takes ``(output dict, label)`` and returns a scalar."""

from __future__ import annotations

from monai_mil.losses.anchor_divergence import AnchorDivergence
from monai_mil.losses.attention_entropy import AttentionEntropy
from monai_mil.losses.attention_similarity import AttentionSimilarity
from monai_mil.losses.bag import BagBCE, BagCrossEntropy, bag_loss
from monai_mil.losses.branch_loss import BranchLoss
from monai_mil.losses.instance import InstanceBCE
from monai_mil.losses.level_loss import LevelLoss
from monai_mil.losses.max_instance import MaxInstance
from monai_mil.losses.mil_loss import MILLoss
from monai_mil.losses.normal_guidance import NormalGuidance, normal_guidance
from monai_mil.losses.parameter_l1 import ParameterL1
from monai_mil.losses.screening import ScreeningLoss
from monai_mil.losses.screening_distillation import ScreeningDistillation
from monai_mil.losses.sigmoid_entropy import SigmoidEntropy
from monai_mil.losses.smooth_svm import InstanceSmoothSVM
from monai_mil.losses.spectral_decoupling import SpectralDecoupling
from monai_mil.losses.survival import DiscreteSurvival, time_bins
from monai_mil.losses.teacher_consistency import TeacherConsistency
from monai_mil.losses.token_dice import TokenDice
from monai_mil.losses.top_instance import TopInstanceSVM

__all__ = [
    "AnchorDivergence",
    "AttentionEntropy",
    "AttentionSimilarity",
    "BagBCE",
    "BagCrossEntropy",
    "BranchLoss",
    "DiscreteSurvival",
    "InstanceBCE",
    "InstanceSmoothSVM",
    "LevelLoss",
    "MILLoss",
    "MaxInstance",
    "NormalGuidance",
    "ParameterL1",
    "ScreeningDistillation",
    "ScreeningLoss",
    "SigmoidEntropy",
    "SpectralDecoupling",
    "TeacherConsistency",
    "TokenDice",
    "TopInstanceSVM",
    "bag_loss",
    "normal_guidance",
    "time_bins",
]
