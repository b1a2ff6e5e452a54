"""Predictions of slides or scans: which configs and settings of a bundle make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_mil.errors import SettingsError
from monai_mil.model_card import read_model
from monai_mil.runs.bundles import Bundle
from monai_mil.runs.inputs import input_settings
from monai_mil.runs.run import BundleRun

FORMATS = {
    "slides": ("png", "geojson", "tiff", "mask", "seg", "fractional", "pm", "ann", "sc", "sr"),
    "scans": ("curve", "montage", "nifti", "mask", "seg", "fractional", "pm", "sc", "sr"),
}
"""What heatmaps of slides, and of scans, can be written as."""
_USUAL = {"slides": ("png", "geojson"), "scans": ("curve", "montage", "nifti")}


def predict_run(
    bundle: Bundle,
    inputs: Sequence[Path],
    out: Path,
    *,
    model: Path | None = None,
    heatmaps: Sequence[str] | None = None,
    raw: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> BundleRun:
    """The run that predicts ``inputs``.

    Args:
        bundle: whose network predicts.
        inputs: slides or scans, folders of them, one folder of bags, or one cohort table.
        out: the run's folder.
        model: other weights than the bundle's own: a ``model.pt``, or a training's folder that holds
            ``models/model.pt``.
        heatmaps: formats, of ``FORMATS``; an empty list writes no heatmap; None takes the usual ones.
        raw: read the slides or scans of a table even where their bags lie beside it.
        settings: further keys of the bundle's configs; they win over all others.

    Raises:
        SettingsError: an unknown format, or there are no weights.
        CohortError: an input is not there.

    Examples:
        >>> from monai_mil.runs import find_bundle, predict_run
        >>> (folder / "slides").mkdir()
        >>> run = predict_run(find_bundle("pathology_asmil"), [folder / "slides"], folder / "out", heatmaps=["png"])
        >>> run.configs, run.settings["heatmap_formats"]
        (('inference', 'inference_heatmap', 'inference_slides'), ['png'])
    """
    known = FORMATS[bundle.reads]
    unknown = [name for name in heatmaps or () if name not in known]
    if unknown:
        raise SettingsError(f"no heatmap format '{unknown[0]}' of {bundle.reads}: choose from {', '.join(known)}")
    weights = _weights(bundle, model)
    where, is_raw = input_settings(inputs, raw=raw)
    own = {**where, "output_dir": str(out.absolute())}
    if model is not None:
        own["ckpt_path"] = str(weights)
    formats = list(_USUAL[bundle.reads] if heatmaps is None else heatmaps)
    configs = ["inference"]
    if bundle.has("inference_heatmap") and formats:
        configs.append("inference_heatmap")
    if read_model(weights).get("time_edges"):
        configs.append("inference_survival")
    if is_raw:
        configs.append(f"inference_{bundle.reads}")
    if formats or not bundle.has("inference_heatmap"):
        own["slice_formats" if bundle.reads == "scans" else "heatmap_formats"] = formats
    return BundleRun(bundle, tuple(configs), {**own, **(settings or {})})


def _weights(bundle: Bundle, model: Path | None) -> Path:
    """The weights to predict with; raises a SettingsError where there are none."""
    if model is None:
        if not bundle.weights.is_file():
            raise SettingsError(f"bundle '{bundle.name}' comes without weights; train it, and name them with --model")
        return bundle.weights
    places = (model, model / "models" / "model.pt", model / "model.pt")
    found = next((path.absolute() for path in places if path.is_file()), None)
    if found is None:
        raise SettingsError(f"'{model}' is no file of weights and no folder with models/model.pt")
    return found
