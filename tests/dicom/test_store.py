"""Results in a store of DICOM objects: Orthanc keeps them beside their source, as they were written."""

from __future__ import annotations

import pytest

from tests import orthanc
from tests.dicom.examples import plain_series
from tests.dicom.test_objects import PATIENT, written

pytestmark = pytest.mark.skipif(orthanc.PROGRAM is None, reason=orthanc.ABSENT)


def test_source_and_results_are_one_study_of_one_patient(tmp_path):
    source = plain_series(tmp_path / "series", **PATIENT)
    made = written(tmp_path / "out", source)
    with orthanc.running(tmp_path / "store") as store:
        store.add(source)
        store.add(tmp_path / "out")
        assert [len(store.send("GET", f"/{level}").json) for level in ("patients", "studies")] == [1, 1]
        (study,) = (store.send("GET", f"/studies/{number}").json for number in store.send("GET", "/studies").json)
        assert len(study["Series"]) == 1 + len(made)
        kept = {store.send("GET", f"/instances/{number}/file").body for number in store.send("GET", "/instances").json}
    assert {path.read_bytes() for path in made.values()} <= kept
