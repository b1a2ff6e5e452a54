"""Cohorts and trained models of the bundles, made once a session."""

import os
import shutil

import filelock
import pytest
from monai.bundle.config_item import ComponentLocator

from tests.bundles.common import EXAMPLES, export_arguments, network_width, train


@pytest.fixture(scope="session", autouse=True)
def _forks(fork_server):
    """Bundles run as forks."""


@pytest.fixture(scope="session", autouse=True)
def _locate_once():
    """Every parser of MONAI looks through all of its modules for classes; once for the same modules is enough."""
    found = {}
    locate = ComponentLocator._find_classes_or_functions

    def remembered(self, modules):
        names = tuple(modules)
        if names not in found:
            found[names] = locate(self, names)
        return found[names]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ComponentLocator, "_find_classes_or_functions", remembered)
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """``made_once(what, make)`` is a folder that ``make`` has filled, in whichever of pytest's workers asked first."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder(what, make):
        place, done = root / what, root / f"{what}.done"
        with filelock.FileLock(root / f"{what}.lock"):
            if not done.exists():
                shutil.rmtree(place, ignore_errors=True)  # of a worker that failed
                place.mkdir()
                make(place)
                done.touch()
        return place

    return folder


@pytest.fixture(scope="session")
def cohort_of(made_once):
    """``cohort_of(bundle)`` is the folder of the synthetic cohort that bundle runs on."""

    def folder(name):
        if name not in EXAMPLES:
            pytest.fail(f"tests/bundles/common.py has no example for the bundle '{name}'")
        return made_once(f"{name}_cohort", lambda place: EXAMPLES[name].cohort(place, network_width(name)))

    return folder


@pytest.fixture(scope="session")
def trained_of(cohort_of, made_once):
    """``trained_of(bundle)`` is the folder of a run of three epochs on that cohort, and what it printed."""

    def run(name):
        folder = made_once(f"{name}_trained", lambda place: _train(name, place, cohort_of(name)))
        return folder, (folder / "stdout").read_text()

    return run


def _train(name, folder, cohort):
    (folder / "stdout").write_text(train(name, folder, cohort, epochs=3).stdout)


@pytest.fixture(scope="session")
def evaluated_of(trained_of, cohort_of, made_once):
    """``evaluated_of(bundle)`` is the folder of that model and of its evaluation on the test split."""

    def run(name):
        models = trained_of(name)[0] / "models"
        return made_once(f"{name}_evaluated", lambda place: _evaluate(name, place, cohort_of(name), models))

    return run


def _evaluate(name, folder, cohort, models):
    shutil.copytree(models, folder / "models")
    train(name, folder, cohort, epochs=3, files=("train", "evaluate"), patient_level="max")


@pytest.fixture(scope="session")
def torchscript_of(made_once):
    """``torchscript_of(bundle)`` is the shipped network as ``ckpt_export`` writes it."""

    def export(name):
        from monai.bundle import ckpt_export

        def make(place):
            ckpt_export(**export_arguments(name, place / "model.ts"))

        return made_once(f"{name}_torchscript", make) / "model.ts"

    return export


@pytest.fixture
def name(request):
    """The bundle that a module of tests is about."""
    return request.module.NAME


@pytest.fixture
def cohort(name, cohort_of):
    return cohort_of(name)


@pytest.fixture
def trained(name, trained_of):
    return trained_of(name)


@pytest.fixture
def evaluated(name, evaluated_of):
    return evaluated_of(name)
