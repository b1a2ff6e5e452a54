"""Slides that several threads open at once: cuCIM crashes the process where two do so before it has any."""

from __future__ import annotations

import sys
import threading
import time
from types import ModuleType

import numpy as np

from monai_mil.slides import open_slide, write_pyramid


def test_cucim_opens_one_slide_at_a_time(tmp_path, monkeypatch):
    opening, most = [], []

    class CuImage:
        def __init__(self, path):
            opening.append(path)
            most.append(len(opening))
            time.sleep(0.05)
            opening.remove(path)
            self.resolutions = {"level_dimensions": [(512, 512)], "level_downsamples": [1.0]}

        def close(self):
            pass

    fake = ModuleType("cucim.clara")
    fake.CuImage = CuImage
    monkeypatch.setitem(sys.modules, "cucim.clara", fake)
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)
    paths = [tmp_path / f"{name}.tif" for name in "abc"]
    for path in paths:
        write_pyramid(path, pixels, mpp=0.5)

    def look(path):
        with open_slide(path):
            pass

    threads = [threading.Thread(target=look, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 3, "the slides were not opened by cuCIM"
    assert max(most) == 1
