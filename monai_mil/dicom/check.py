"""Whether DICOM objects can be written here."""

from __future__ import annotations

import importlib.util

from monai_mil.errors import SettingsError


def check_highdicom() -> None:
    """Raise a SettingsError that says what to install, where highdicom is not."""
    if importlib.util.find_spec("highdicom") is None:
        raise SettingsError("DICOM objects need highdicom: pip install 'monai-mil[dicom]'")
