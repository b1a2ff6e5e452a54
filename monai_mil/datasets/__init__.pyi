from .as_cohort import classic_cohort, mnist_cohort
from .classic import CLASSIC_SETS, ClassicBags, read_classic
from .mnist_bags import make_mnist_bags

__all__ = [
    "CLASSIC_SETS",
    "ClassicBags",
    "classic_cohort",
    "make_mnist_bags",
    "mnist_cohort",
    "read_classic",
]
