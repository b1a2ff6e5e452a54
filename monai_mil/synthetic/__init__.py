"""Seeded synthetic slides, scans, bags, tokens, trees and follow-up, with the place of every lesion known."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
