"""Embedding: from slides and scans to bags of features, in jobs that may be killed, resumed and shared."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
