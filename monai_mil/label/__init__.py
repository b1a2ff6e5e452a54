"""MONAI Label with bundles for multiple-instance learning: annotate, learn, and be asked the right question next.

What needs MONAI Label itself stands in ``monai_mil.label.app``, which an application's ``main.py`` imports, and in
``monai_mil.label.server``; the rest of the room works without it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
