"""Whole-slide images: opening, tissue, tile grids, streaming tiles, writing pyramids."""

import os

import lazy_loader

# cuFile, which cuCIM loads, otherwise logs into the current folder and ends the process where it cannot.
os.environ.setdefault("CUFILE_LOGFILE_PATH", os.devnull)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
