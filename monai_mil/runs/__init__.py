"""From a bundle's name and a user's words to a configured workflow: what predict, train and evaluate start from."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
