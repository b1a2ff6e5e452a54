"""Results as DICOM objects: reports, segmentations, parametric maps, annotations of slides, and pictures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
