"""Multiple-instance learning for whole-slide images and CT as MONAI Bundles."""

__version__ = "0.1.0"
