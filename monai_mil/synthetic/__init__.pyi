from .bags import make_bag_cohort
from .mask import tile_truth
from .scan_cohort import lesion_truth, make_scan_cohort
from .shifted_mean import ShiftedMean, make_shifted_mean_cohort
from .slide_cohort import LESION_RADII, make_slide_cohort
from .survival import make_survival_cohort
from .tokens import make_token_scan_cohort
from .trees import make_tree_cohort

__all__ = [
    "LESION_RADII",
    "ShiftedMean",
    "lesion_truth",
    "make_bag_cohort",
    "make_scan_cohort",
    "make_shifted_mean_cohort",
    "make_slide_cohort",
    "make_survival_cohort",
    "make_token_scan_cohort",
    "make_tree_cohort",
    "tile_truth",
]
