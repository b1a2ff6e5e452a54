"""Cohorts: tables of cases with their labels, follow-up and splits, and finding slides, scans and bags in folders."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
