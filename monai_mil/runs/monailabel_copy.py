"""A copy of a bundle of scans that MONAI Label's own applications load, ask and train."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai_mil.errors import SettingsError
from monai_mil.model_card import read_model
from monai_mil.runs.bundles import Bundle, copy_bundle
from monai_mil.runs.quiet_imports import quiet_imports

_LAYERS = {
    "inference": ("inference", "inference_scans", "inference_monailabel"),
    "train": ("train", "inference_scans", "train_monailabel"),
}
_KEPT = (*_LAYERS, "metadata", "multi_gpu_train")
_LABELS = {"0": "background", "1": "medium", "2": "high"}


def copy_for_monailabel(bundle: Bundle, folder: Path) -> Path:
    """Copy a bundle to ``folder/<name>`` for MONAI Label's applications ``monaibundle`` and ``radiology``.

    These read one file of each kind: ``inference.json`` of the copy takes a scan and leaves a label map on the scan's
    own grid (medium and high heat), ``train.json`` takes scans and the masks that annotators submit: any voxel above 0
    makes a scan positive. What is trained takes the place of ``models/model.pt`` once it is whole.

    Returns:
        The copy.

    Raises:
        SettingsError: the bundle reads slides, for which MONAI Label's own applications have no place.
        OutputError: the copy exists already, or cannot be written.
    """
    if not bundle.has("inference_monailabel"):
        raise SettingsError(
            f"bundle '{bundle.name}' reads {bundle.reads}: MONAI Label's own applications take bundles of scans"
        )
    copy = Bundle(copy_bundle(bundle, folder))
    for name, layers in _LAYERS.items():
        _write(copy.config(name), _merged(copy, layers))
    _write(copy.config("metadata"), _metadata(bundle.metadata))
    _move_points(bundle.metadata, copy)
    for path in (copy.root / "configs").glob("*.json"):
        if path.stem not in _KEPT:
            path.unlink()
    return copy.root


def _merged(bundle: Bundle, layers: tuple[str, ...]) -> dict[str, Any]:
    """Configs laid over each other, as ``monai.bundle run`` lays them.

    What changes a part that is not there is left out: the layer of scans says to DICOM objects how scans were read, and
    training writes none.
    """
    with quiet_imports():
        from monai.bundle import ConfigParser
        from monai.bundle.utils import merge_kv

    merged = ConfigParser({})
    for name in layers:
        for key, value in ConfigParser.load_config_file(str(bundle.config(name))).items():
            whole, _, inner = key.partition("::")
            if not inner or whole.lstrip("+~") in merged:
                merge_kv(merged, key, value)
    content: dict[str, Any] = merged.get()
    return content


def _metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    """With the input and the answer as a client sees them: a scan, and a label map of it."""
    form = metadata["network_data_format"]
    image, pred = next(iter(form["inputs"].values())), next(iter(form["outputs"].values()))
    image |= {"type": "image", "format": "hounsfield", "num_channels": 1, "spatial_shape": ["*", "*", "*"]}
    pred |= {"type": "image", "format": "segmentation", "num_channels": len(_LABELS), "channel_def": dict(_LABELS)}
    pred |= {"spatial_shape": ["*", "*", "*"], "dtype": "uint8", "value_range": [0, 2], "is_patch_data": False}
    pred.pop("activation", None)
    form["inputs"], form["outputs"] = {"image": image}, {"pred": pred}
    return metadata


def _move_points(metadata: dict[str, Any], copy: Bundle) -> None:
    """Into the card of the weights: MONAI Label reads no metadata into a config, and a new model has other points."""
    card = read_model(copy.weights)
    if card.path is not None and metadata.get("operating_points_model") == card.weights:
        points = tuple(float(point) for point in metadata["operating_points"])
        replace(card, operating_points=points, operating_point_rule=metadata["operating_point_rule"]).write()


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
