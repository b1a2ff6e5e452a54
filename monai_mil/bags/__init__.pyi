from .check import CheckedBag, check_bags
from .clam import export_clam
from .collate import collate_bags
from .dataset import FailedCase, ResilientDataset, write_failures
from .datasets import find_dataset
from .facts import BagFacts, bag_facts
from .file import BagFile, level_folder
from .info import BAG_FORMAT, BagInfo, info_attributes
from .load import LoadBagd
from .load_tree import LoadTreed
from .patient import join_bags
from .pixels import PixelsAsFeaturesd
from .storage import MappedFeatures, check_storage, first_non_finite_row
from .tokens import token_mask
from .transforms import PositionsAsFeaturesd, SampleInstancesd, bag_tensor, instance_places

__all__ = [
    "BAG_FORMAT",
    "BagFacts",
    "BagFile",
    "BagInfo",
    "CheckedBag",
    "FailedCase",
    "LoadBagd",
    "LoadTreed",
    "MappedFeatures",
    "PixelsAsFeaturesd",
    "PositionsAsFeaturesd",
    "ResilientDataset",
    "SampleInstancesd",
    "bag_facts",
    "bag_tensor",
    "check_bags",
    "check_storage",
    "collate_bags",
    "export_clam",
    "find_dataset",
    "first_non_finite_row",
    "info_attributes",
    "instance_places",
    "join_bags",
    "level_folder",
    "token_mask",
    "write_failures",
]
