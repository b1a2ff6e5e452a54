"""Bags: features of a slide's tiles on disk, the cohorts they belong to, and the way into a network."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
