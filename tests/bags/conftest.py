import pytest

from monai_mil.bags import make_slide_cohort


@pytest.fixture(scope="session")
def slide_cohort(tmp_path_factory):
    """The table of four synthetic slides of 2048 x 2048 pixels."""
    folder = tmp_path_factory.mktemp("slides")
    return make_slide_cohort(folder, num_slides=4, size=(2048, 2048), seed=7, fractions=(0.5, 0.0, 0.5))
