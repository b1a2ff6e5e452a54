from .batches import prepare_bag_batch
from .best_model import BestModel
from .checkpointer import Checkpointer
from .distributed import finish_distributed
from .early_stop import EarlyStop
from .inferers import FullOutputInferer
from .seeding import EpochSeeder

__all__ = [
    "BestModel",
    "Checkpointer",
    "EarlyStop",
    "EpochSeeder",
    "FullOutputInferer",
    "finish_distributed",
    "prepare_bag_batch",
]
