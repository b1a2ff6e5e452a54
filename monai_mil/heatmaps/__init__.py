"""Instance scores back on the slide or scan: heatmaps and their exports as PNG, TIFF, GeoJSON and NIfTI."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
