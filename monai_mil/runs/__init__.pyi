from .archive import pack_bundle
from .bundles import Bundle, bundles_folder, copy_bundle, find_bundle, shipped_bundles, shipped_files
from .description import Description, describe_bundle
from .inference import FORMATS, predict_run
from .inputs import cohort_settings, input_settings
from .keep_bags import with_bags
from .light_imports import import_monai_lightly
from .monailabel_copy import copy_for_monailabel
from .prediction import Outcome, predict
from .run import BundleRun, parsed_settings
from .summary import show_outcome
from .train import calibrate_run, class_names, evaluate_run, train_run

__all__ = [
    "FORMATS",
    "Bundle",
    "BundleRun",
    "Description",
    "Outcome",
    "bundles_folder",
    "calibrate_run",
    "class_names",
    "cohort_settings",
    "copy_bundle",
    "copy_for_monailabel",
    "describe_bundle",
    "evaluate_run",
    "find_bundle",
    "import_monai_lightly",
    "input_settings",
    "pack_bundle",
    "parsed_settings",
    "predict",
    "predict_run",
    "shipped_bundles",
    "shipped_files",
    "show_outcome",
    "train_run",
    "with_bags",
]
