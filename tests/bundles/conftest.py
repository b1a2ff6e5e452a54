"""Cohorts and trained models of the bundles, made once a session."""

import shutil

import pytest

from tests.bundles.common import EXAMPLES, network_width, train


@pytest.fixture(scope="session", autouse=True)
def _forks(fork_server):
    """Bundles run as forks."""


@pytest.fixture(scope="session")
def cohort_of(tmp_path_factory):
    """``cohort_of(bundle)`` is the folder of the synthetic cohort that bundle runs on."""
    made = {}

    def folder(name):
        if name not in made:
            if name not in EXAMPLES:
                pytest.fail(f"tests/bundles/common.py has no example for the bundle '{name}'")
            made[name] = EXAMPLES[name].cohort(tmp_path_factory.mktemp(name), network_width(name)).parent
        return made[name]

    return folder


@pytest.fixture(scope="session")
def trained_of(cohort_of, tmp_path_factory):
    """``trained_of(bundle)`` is the folder of a run of three epochs on that cohort, and what it printed."""
    made = {}

    def run(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(f"{name}_trained")
            made[name] = folder, train(name, folder, cohort_of(name), epochs=3).stdout
        return made[name]

    return run


@pytest.fixture(scope="session")
def evaluated_of(trained_of, cohort_of, tmp_path_factory):
    """``evaluated_of(bundle)`` is the folder of that model and of its evaluation on the test split."""
    made = {}

    def run(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(f"{name}_evaluated")
            shutil.copytree(trained_of(name)[0] / "models", made[name] / "models")
            train(name, made[name], cohort_of(name), epochs=3, files=("train", "evaluate"))
        return made[name]

    return run


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
