"""What MONAI's and ignite's engines lack for bags: inferers, batches, resume, seeding, early stopping."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
