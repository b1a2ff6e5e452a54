"""Orthanc on loopback: a store of DICOM objects that is asked through DICOMweb (apt: orthanc, orthanc-dicomweb)."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.label.clients import Client
from tests.label.served import free_port

PROGRAM = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ABSENT = "Orthanc is absent: apt-get install orthanc orthanc-dicomweb"


class Orthanc(Client):
    """A store that runs."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def add(self, folder: Path) -> None:
        """Every file below a folder."""
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            assert self.send("POST", "/instances", path.read_bytes()).status == 200, path

    def series(self, modality: str) -> list[dict[str, Any]]:
        """What is kept of a modality."""
        found = [self.send("GET", f"/series/{number}").json for number in self.send("GET", "/series").json]
        return [series for series in found if series["MainDicomTags"]["Modality"] == modality]


@contextmanager
def running(folder: Path) -> Iterator[Orthanc]:
    """An empty store in a folder, as long as the block lasts."""
    assert PROGRAM is not None
    folder.mkdir()
    port = free_port()
    conf = {
        "Name": "TEST",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(conf))
    with (folder / "said.log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, str(folder / "orthanc.json")], stdout=log, stderr=log)
    store = Orthanc(port)
    try:
        for _ in range(300):
            time.sleep(0.1)
            assert process.poll() is None, (folder / "said.log").read_text()[-2000:]
            try:
                if store.send("GET", "/dicom-web/studies").status == 200:
                    break
            except OSError:
                continue
        yield store
    finally:
        process.terminate()
        process.wait(30)
