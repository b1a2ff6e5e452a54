from .classic import CLASSIC_SETS, ClassicBags, read_classic
from .mnist_bags import make_mnist_bags

__all__ = [
    "CLASSIC_SETS",
    "ClassicBags",
    "make_mnist_bags",
    "read_classic",
]
