from .anchor import Anchor, AnchorHandler, AnchorInferer
from .anchor_file import read_anchor
from .balanced_sampler import BalancedSampler
from .batches import (
    prepare_bag_batch,
    prepare_instance_batch,
    prepare_positioned_bag_batch,
    prepare_streamed_batch,
    prepare_token_batch,
    prepare_token_label_batch,
)
from .best_model import BestModel
from .broken_bags import BrokenBags
from .checkpointer import Checkpointer
from .class_balance import ClassBalance
from .confounders import FillConfounders, MethodHandlers
from .distributed import finish_distributed
from .early_stop import EarlyStop
from .engines import BagEvaluator, BagTrainer
from .ensemble import Ensemble
from .exported import ExportedNetwork
from .fine_tuning import fit_weights, known_model
from .fit import require_fit
from .folder_claim import claim_folder
from .freeze import freeze_parameters, trained_parameters
from .grad_cam import GradCAMInferer
from .gradient_clip import GradientClip
from .guards import StopOnNaN, require_steps
from .inferers import FullOutputInferer, StreamedInferer
from .labels import check_labels
from .last_word import tell_errors_last, users_error
from .method import build_network, describe_network
from .methods import Method, Methods, read_method
from .model_metadata import own_metadata
from .probability import Probability
from .progressive_resizing import ProgressiveResizing
from .prototypes import FollowPrototypes
from .publish import publish_model
from .recipe import Recipe
from .seeding import EpochSeeder
from .skip_non_finite import SkipNonFinite
from .split_names import named_by_split
from .survival import SurvivalRiskd
from .temporal_ensemble import TemporalEnsemble
from .time_bins import TimeBinsSaver, read_time_bins
from .typed_paths import keep_paths_as_typed, value_of
from .unpack import UnpackOutputd

__all__ = [
    "Anchor",
    "AnchorHandler",
    "AnchorInferer",
    "BagEvaluator",
    "BagTrainer",
    "BalancedSampler",
    "BestModel",
    "BrokenBags",
    "Checkpointer",
    "ClassBalance",
    "EarlyStop",
    "Ensemble",
    "EpochSeeder",
    "ExportedNetwork",
    "FillConfounders",
    "FollowPrototypes",
    "FullOutputInferer",
    "GradCAMInferer",
    "GradientClip",
    "Method",
    "MethodHandlers",
    "Methods",
    "Probability",
    "ProgressiveResizing",
    "Recipe",
    "SkipNonFinite",
    "StopOnNaN",
    "StreamedInferer",
    "SurvivalRiskd",
    "TemporalEnsemble",
    "TimeBinsSaver",
    "UnpackOutputd",
    "build_network",
    "check_labels",
    "claim_folder",
    "describe_network",
    "finish_distributed",
    "fit_weights",
    "freeze_parameters",
    "keep_paths_as_typed",
    "known_model",
    "named_by_split",
    "own_metadata",
    "prepare_bag_batch",
    "prepare_instance_batch",
    "prepare_positioned_bag_batch",
    "prepare_streamed_batch",
    "prepare_token_batch",
    "prepare_token_label_batch",
    "publish_model",
    "read_anchor",
    "read_method",
    "read_time_bins",
    "require_fit",
    "require_steps",
    "tell_errors_last",
    "trained_parameters",
    "users_error",
    "value_of",
]
