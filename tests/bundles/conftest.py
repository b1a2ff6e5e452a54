"""Cohorts for the bundles, made once a session."""

import pytest

from tests.bundles.common import COHORTS


@pytest.fixture(scope="session")
def cohort_of(tmp_path_factory):
    """``cohort_of(bundle)`` is the folder of the synthetic cohort that bundle runs on."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = COHORTS[name](tmp_path_factory.mktemp(name), name).parent
        return made[name]

    return folder
