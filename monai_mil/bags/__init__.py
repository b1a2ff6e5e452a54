"""Bags: the files that hold the features of a slide's tiles or a scan's slices, and their way into a network."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
