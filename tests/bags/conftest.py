import numpy as np
import pytest

from monai_mil.bags import make_slide_cohort
from monai_mil.slides import write_pyramid


@pytest.fixture(scope="session")
def slide_cohort(tmp_path_factory):
    """The table of four synthetic slides of 2048 x 2048 pixels."""
    folder = tmp_path_factory.mktemp("slides")
    return make_slide_cohort(folder, num_slides=4, size=(2048, 2048), seed=7, fractions=(0.5, 0.0, 0.5))


def slide_of(path, width, height):
    """A slide with tissue up to its right and lower border."""
    pixels = np.random.default_rng(0).integers(90, 200, (height, width, 3), dtype=np.uint8)
    pixels[:, :, 1] //= 2
    pixels[:200] = pixels[:, :200] = 245
    write_pyramid(path, pixels, mpp=0.5)
    return path
