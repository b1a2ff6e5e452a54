from .cohort import Cohort, CohortSlide, split_cohort
from .cohort_reader import read_cohort
from .collate import collate_bags
from .dataset import ResilientDataset
from .embed import EmbedSettings, embed_slide, tile_slide
from .embed_job import CaseResult
from .embed_run import EmbedReport
from .file import BagFile, export_clam
from .find import bag_datalist, find_slides, slide_datalist
from .info import BagInfo
from .mnist_bags import make_mnist_bags
from .semi_synthetic import ShiftedMean, make_shifted_mean_cohort
from .slide_cohort import embed_cohort
from .synthetic import (
    make_bag_cohort,
    make_slide_cohort,
    tile_truth,
)
from .transforms import EmbedSlided, LoadBagd, SampleInstancesd

__all__ = [
    "BagFile",
    "BagInfo",
    "CaseResult",
    "Cohort",
    "CohortSlide",
    "EmbedReport",
    "EmbedSettings",
    "EmbedSlided",
    "LoadBagd",
    "ResilientDataset",
    "SampleInstancesd",
    "ShiftedMean",
    "bag_datalist",
    "collate_bags",
    "embed_cohort",
    "embed_slide",
    "export_clam",
    "find_slides",
    "make_bag_cohort",
    "make_mnist_bags",
    "make_shifted_mean_cohort",
    "make_slide_cohort",
    "read_cohort",
    "slide_datalist",
    "split_cohort",
    "tile_slide",
    "tile_truth",
]
