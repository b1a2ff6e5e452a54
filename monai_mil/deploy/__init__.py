"""The bundles as applications of MONAI Deploy: a CT series or a slide comes in, files appear at once, a code says how.

What needs MONAI Deploy's SDK stands in ``monai_mil.deploy.operators``, which :func:`main` imports; the rest of the room
works without it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
