from .clam import export_clam
from .classic import CLASSIC_SETS, ClassicBags, read_classic
from .cohort import Cohort, CohortSlide, split_cohort
from .cohort_reader import read_cohort
from .collate import collate_bags
from .dataset import ResilientDataset
from .descend_slide import DescendSlided
from .embed import EmbedSettings, embed_slide, tile_slide, tree_slide
from .embed_ct import ScanSettings, embed_scan
from .embed_job import CaseResult
from .embed_run import EmbedReport
from .file import BagFile
from .find import bag_datalist, find_slides, scan_datalist, slide_datalist
from .info import BagInfo
from .load import LoadBagd
from .load_tree import LoadTreed
from .mnist_bags import make_mnist_bags
from .scan_cohort import embed_scans
from .scan_preset import find_preset
from .semi_synthetic import ShiftedMean, make_shifted_mean_cohort
from .slice_labels import SliceLabelsd
from .slide_cohort import embed_cohort
from .storage import MappedFeatures
from .stream_slide import StreamSlided
from .survival_cohort import follow_up, read_survival_cohort, split_survival_cohort
from .synthetic import LESION_RADII, make_slide_cohort
from .synthetic_bags import make_bag_cohort
from .synthetic_mask import tile_truth
from .synthetic_scan import lesion_truth, make_scan_cohort
from .synthetic_survival import make_survival_cohort
from .synthetic_tokens import make_token_scan_cohort
from .synthetic_trees import make_tree_cohort
from .transforms import EmbedScand, EmbedSlided, SampleInstancesd

__all__ = [
    "CLASSIC_SETS",
    "LESION_RADII",
    "BagFile",
    "BagInfo",
    "CaseResult",
    "ClassicBags",
    "Cohort",
    "CohortSlide",
    "DescendSlided",
    "EmbedReport",
    "EmbedScand",
    "EmbedSettings",
    "EmbedSlided",
    "LoadBagd",
    "LoadTreed",
    "MappedFeatures",
    "ResilientDataset",
    "SampleInstancesd",
    "ScanSettings",
    "ShiftedMean",
    "SliceLabelsd",
    "StreamSlided",
    "bag_datalist",
    "collate_bags",
    "embed_cohort",
    "embed_scan",
    "embed_scans",
    "embed_slide",
    "export_clam",
    "find_preset",
    "find_slides",
    "follow_up",
    "lesion_truth",
    "make_bag_cohort",
    "make_mnist_bags",
    "make_scan_cohort",
    "make_shifted_mean_cohort",
    "make_slide_cohort",
    "make_survival_cohort",
    "make_token_scan_cohort",
    "make_tree_cohort",
    "read_classic",
    "read_cohort",
    "read_survival_cohort",
    "scan_datalist",
    "slide_datalist",
    "split_cohort",
    "split_survival_cohort",
    "tile_slide",
    "tile_truth",
    "tree_slide",
]
