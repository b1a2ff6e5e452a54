"""A DICOMweb store's series, fetched by the server and by the processes that score images beside it."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("monailabel", reason="MONAI Label is absent: run scripts/setup.sh label")

from monai_mil.label import dicomweb
from monai_mil.label.images import StudyImage


def test_who_wants_one_series_at_once_fetches_it_once(tmp_path, monkeypatch):
    def fetch(session, uid, place, client, by_frame):
        note("fetched")
        Path(place).mkdir()
        for number in range(5):
            (Path(place) / f"{number}.dcm").touch()
            time.sleep(0.05)

    def make_volume(uid):
        note("made")
        time.sleep(0.1)
        (tmp_path / "scans" / f"{uid}.nii.gz").touch()

    def note(what):
        with (tmp_path / what).open("a") as file:
            file.write(f"{os.getpid()}\n")

    monkeypatch.setattr(dicomweb, "dicom_web_download_series", fetch)
    kept = SimpleNamespace(image_path=lambda: str(tmp_path / "scans"))
    remote = SimpleNamespace(_datastore=kept, _client=None, _fetch_by_frame=False, get_image_uri=make_volume)
    series = dicomweb.RemoteSeries(remote)
    image = StudyImage("1.2.3", series.folder / "1.2.3", "scans")
    child = os.fork()
    if child == 0:
        with suppress(Exception):
            os._exit(int(not series.volume(image).exists()))
        os._exit(1)
    threads = [threading.Thread(target=series.volume, args=(image,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [len((tmp_path / what).read_text().split()) for what in ("fetched", "made")] == [1, 1]
    assert sorted(path.name for path in series.folder.glob("1.2.3*")) == ["1.2.3", "1.2.3.nii.gz"]
    assert len(list(image.path.iterdir())) == 5
