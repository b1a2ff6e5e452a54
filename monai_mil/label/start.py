"""The command that starts a server on a project."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from monai_mil.errors import SettingsError
from monai_mil.label.project import Conf

LOOPBACK = "127.0.0.1"


def start_command(folder: Path, studies: str, *, host: str = LOOPBACK, port: int = 8000) -> list[str]:
    """What starts MONAI Label's server on an application folder.

    Args:
        folder: as :func:`init_project` makes it.
        studies: folder of slides or scans, or the address of a remote store.
        host: where it listens; on this machine only unless somebody says otherwise.
        port: likewise.

    Raises:
        SettingsError: MONAI Label is not installed here, or the folder is none of an application.
    """
    if find_spec("monailabel") is None:
        raise SettingsError(
            "MONAI Label is not installed here: run scripts/setup.sh label, and start this from .venv-label/bin"
        )
    Conf.read(folder)
    server = [sys.executable, "-m", "monailabel.main", "start_server"]
    places = ["--app", str(folder.absolute()), "--studies", studies, "--host", host, "--port", str(port)]
    return [*server, *places, "--uvicorn_app", "monai_mil.label.server:app"]
