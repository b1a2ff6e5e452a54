"""Frozen feature extractors: tiles and slices to pooled vectors or spatial token maps."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
