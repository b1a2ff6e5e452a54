"""The folder that MONAI Deploy's packager makes an image of: application, model, papers, and what it asks for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from string import Template

from monai_mil.deploy.job import READS, DeployConf
from monai_mil.errors import OutputError
from monai_mil.files import make_folder
from monai_mil.runs import Bundle, copy_bundle

_PACKAGE = Path(__file__).resolve().parents[1]
_TEMPLATES = Path(__file__).resolve().parent / "templates"
_INPUT = {
    "ct": {"data": "image", "format": "dicom", "type": "series", "modality": "CT"},
    "slide": {"data": "image", "format": "dicom", "type": "wsi", "modality": "SM"},
}
_OUTPUT = ["dicom", "json", "png", "csv", "geojson", "tiff"]
_BASE_IMAGE = "nvcr.io/nvidia/cuda:13.0.0-runtime-ubuntu24.04"
_HOLOSCAN = "4.2.0"


def stage_application(bundle: Bundle, folder: Path) -> Path:
    """Lay out what ``monai-deploy package`` takes, in a new folder.

    ``app/`` holds the application with this very package in it and the pinned requirements, ``models/`` the bundle,
    ``docs/`` its README, its licence and its model card. ``app.yaml`` is the packager's configuration,
    ``artifacts.json`` says which image it builds on, so that it need not be downloaded, and ``Dockerfile.map`` builds
    without it.

    Args:
        bundle: what is packaged.
        folder: where; it must not exist.

    Returns:
        The folder.

    Raises:
        SettingsError: the bundle has no usable ``configs/deploy.json``.
        OutputError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise OutputError(f"'{folder}' exists; remove it or choose another folder")
    DeployConf.of(bundle)
    modality = next(name for name, reads in READS.items() if reads == bundle.reads)
    metadata = bundle.metadata
    texts = {
        "modality": modality,
        "bundle": bundle.name,
        "title": f"{metadata['name']} (research use only)",
        "version": metadata["version"],
        "input_formats": json.dumps(_INPUT[modality]),
        "output_formats": ", ".join(_OUTPUT),
    }
    app, docs = folder / "app", folder / "docs"
    for place in (app, docs):
        make_folder(place)
    try:
        shutil.copytree(_PACKAGE, app / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "label", "cli.py"))
        shutil.copyfile(_PACKAGE / "deploy" / "requirements.txt", app / "requirements.txt")
        for template, place in (
            ("main.py", app / "__main__.py"),
            ("app.yaml", folder / "app.yaml"),
            ("Dockerfile", folder / "Dockerfile.map"),
        ):
            text = Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(texts)
            place.write_text(text, encoding="utf-8")
        copy_bundle(bundle, folder / "models")
        for paper in (bundle.root / "docs" / "README.md", bundle.root / "LICENSE", bundle.weights.with_suffix(".json")):
            shutil.copyfile(paper, docs / paper.name)
        (folder / "artifacts.json").write_text(json.dumps(_artifacts(), indent=4) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"'{folder}' cannot be written: {error.strerror}") from error
    return folder


def _artifacts() -> dict[str, object]:
    """What the packager would download: the image that holoscan's release is built on."""
    images = {"base-images": {"dgpu": _BASE_IMAGE}, "build-images": {"dgpu": {}, "igpu": {}, "cpu": {}}}
    return {_HOLOSCAN: {"holoscan": {"debian-version": _HOLOSCAN, "wheel-version": _HOLOSCAN, **images}}}
