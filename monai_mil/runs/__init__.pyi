from .archive import pack_bundle
from .bundles import Bundle, bundles_folder, copy_bundle, find_bundle, shipped_bundles, shipped_files
from .description import Description, describe_bundle
from .ensemble import make_ensemble
from .heavy_imports import import_monai_wholly
from .inference import FORMATS, predict_run
from .inputs import cohort_settings, input_settings
from .keep_bags import embed_as, from_bags, with_bags
from .light_imports import import_monai_lightly
from .monailabel_copy import copy_for_monailabel
from .prediction import Outcome, predict
from .run import BundleRun, in_users_words, parsed_settings
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
    "embed_as",
    "evaluate_run",
    "find_bundle",
    "from_bags",
    "import_monai_lightly",
    "import_monai_wholly",
    "in_users_words",
    "input_settings",
    "make_ensemble",
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
