"""Fixtures every room's tests share."""

import gc
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("untimed")

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("MONAI_MIL_SHARED", ROOT.parent / "shared"))


# Begun first, so that no core waits at the end for one that began last.
LONGEST = ("test_running.py", "test_demo.py", "test_mil_baselines.py", "test_contract.py", "test_acceptance.py")


gc.disable()  # until all is imported: a sixth of what the imports take would be looking for garbage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_collection_finish() -> None:
    """What was imported is never garbage; looking through it again and again takes seconds."""
    gc.collect()
    gc.freeze()
    gc.enable()


def shared(relative: str) -> Path:
    """A file or folder of the reference data kept beside the project; skips the test where it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"reference data '{relative}' is absent; set MONAI_MIL_SHARED to the folder that holds it")
    return path


def unpacked(archive: str, folder: Path) -> Path:
    """The one folder inside an archive of the reference data."""
    with tarfile.open(shared(archive)) as tar:
        tar.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.fixture(scope="session")
def head_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28 slices of a GE head CT: gantry tilt 18.5 degrees, 14 slices of 4 mm, 14 of 7 mm."""
    return unpacked("data/ct_head_ge_gantrytilt/ge_head_dicom.tar.xz", tmp_path_factory.mktemp("head"))


@pytest.fixture(scope="session")
def chest_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fifth slice of LIDC-IDRI-0314, with one nodule."""
    return unpacked("data/ct_chest_lidc0314/lidc0314_5mm_dicom.tar.xz", tmp_path_factory.mktemp("chest"))


@pytest.fixture(scope="session")
def abdomen_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 slices of an abdominal CT in JPEG 2000."""
    return unpacked("data/ct_totalsegmentator/example_ct_dicom.tar", tmp_path_factory.mktemp("abdomen"))


@pytest.fixture(scope="session")
def fork_server() -> Iterator[None]:
    """A process that has imported MONAI, from which :mod:`tests.processes` forks what tests run."""
    from tests.processes import fork_server

    with fork_server():
        yield


@pytest.fixture(scope="session")
def slide_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of four synthetic slides of 2048 x 2048 pixels."""
    from monai_mil.synthetic import make_slide_cohort

    folder = tmp_path_factory.mktemp("slides")
    return make_slide_cohort(folder, num_slides=4, size=(2048, 2048), seed=7, fractions=(0.5, 0.0, 0.5))
