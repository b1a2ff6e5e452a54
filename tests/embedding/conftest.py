import shutil

import numpy as np
import pytest
import tifffile

from monai_mil.slides import write_pyramid


@pytest.fixture(scope="session")
def border_slide(tmp_path_factory):
    """1000 x 1100 px at 0.5 mpp; tiles of 256 px at its border have quarters wholly outside."""
    return slide_of(tmp_path_factory.mktemp("slide") / "tissue.tif", 1000, 1100)


def slide_of(path, width, height):
    """A slide with tissue up to its right and lower border."""
    pixels = np.random.default_rng(0).integers(90, 200, (height, width, 3), dtype=np.uint8)
    pixels[:, :, 1] //= 2
    pixels[:200] = pixels[:, :200] = 245
    write_pyramid(path, pixels, mpp=0.5)
    return path


def damaged_copy(path, copy):
    """The slide with its last stored tile overwritten by zeros."""
    shutil.copy(path, copy)
    with tifffile.TiffFile(copy) as tiff:
        place, length = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]
    with copy.open("r+b") as file:
        file.seek(place)
        file.write(bytes(length))
    return copy
