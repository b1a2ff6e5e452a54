from .cohort import SPLITS, Cohort, CohortSlide
from .datalists import bag_datalist, scan_datalist, slide_datalist
from .patients import check_patients
from .reader import is_table, read_cohort
from .scan_truth import ScanTruthd
from .slice_labels import SliceLabelsd
from .slide_search import find_slides, named_slides
from .splits import choose_fold, split_cohort
from .survival import follow_up, read_survival_cohort, split_survival_cohort

__all__ = [
    "SPLITS",
    "Cohort",
    "CohortSlide",
    "ScanTruthd",
    "SliceLabelsd",
    "bag_datalist",
    "check_patients",
    "choose_fold",
    "find_slides",
    "follow_up",
    "is_table",
    "named_slides",
    "read_cohort",
    "read_survival_cohort",
    "scan_datalist",
    "slide_datalist",
    "split_cohort",
    "split_survival_cohort",
]
