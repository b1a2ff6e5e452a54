"""A bundle's metadata for a model of the user's own: what its exports say of themselves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

_OF_THE_SHIPPED_MODEL = ("eval_metrics", "operating_points", "operating_points_model", "operating_point_rule")
_SAID = {"pred": "score of {}", "heatmap": "how much a token speaks for {}"}


def own_metadata(metadata: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A bundle's metadata with the input, the outputs and the classes of another model of the same network.

    What is true of the shipped model alone (its figures, its operating points, its data) is left out. The answer's
    channels are called scores of the classes, never by a class's bare name: MONAI Deploy's SDK writes
    ``channel_def[int(p)]`` as the finding, which would call every case by the first of them.

    Args:
        metadata: content of the bundle's ``metadata.json``.
        settings: of the model, as ``model_card.ModelCard`` has them.

    Returns:
        A copy to give to ``monai.bundle ckpt_export`` and ``onnx_export`` as ``--meta_file``.

    Examples:
        >>> from monai_mil.training import own_metadata
        >>> pred = {"num_channels": 2, "channel_def": {"0": "score of normal", "1": "score of tumor"}}
        >>> form = {"inputs": {"image": {"num_channels": 76, "spatial_shape": ["*"]}}, "outputs": {"pred": pred}}
        >>> settings = {"class_names": ["low", "mid", "high"], "in_channels": 512}
        >>> own = own_metadata({"network_data_format": form}, settings)
        >>> own["network_data_format"]["outputs"]["pred"]["channel_def"]
        {'0': 'score of low', '1': 'score of mid', '2': 'score of high'}
    """
    own = copy.deepcopy({key: value for key, value in metadata.items() if key not in _OF_THE_SHIPPED_MODEL})
    names = [str(name) for name in settings["class_names"]]
    form = own["network_data_format"]
    taken, shape = form["inputs"]["image"], _shape(settings)
    taken["num_channels"] = settings["in_channels"]
    taken["spatial_shape"] = shape or taken["spatial_shape"]
    is_single = form["outputs"]["pred"]["num_channels"] == 1 and not settings.get("multi_label", False)
    spoken = names[-1:] if is_single else names
    exclusive = not is_single and not settings.get("multi_label", False)
    form["outputs"]["pred"]["activation"] = "softmax" if exclusive else "sigmoid"
    for part in ("outputs", "post_processed_outputs"):
        for kind, given in form.get(part, {}).items():
            if kind in _SAID:
                said = [_SAID[kind].format(name) for name in spoken]
                given["num_channels"] = len(spoken)
                given["channel_def"] = {str(index): text for index, text in enumerate(said)}
            if shape and given.get("spatial_shape"):
                given["spatial_shape"] = shape
    own["label_classes"] = ", ".join(f"{index} is {name}" for index, name in enumerate(names))
    own["pred_classes"] = f"probability of {spoken[0]}" if is_single else "probability of each class"
    own["data_source"] = "The cohort that this model was trained on"
    own["model_settings"] = dict(settings)
    return own


def _shape(settings: Mapping[str, Any]) -> list[Any] | None:
    """How many instances a bag has, and how many tokens each; None where the bundle's own is right."""
    if settings.get("grid"):
        return ["*", *settings["grid"]]
    if settings.get("levels"):
        return [f"{(4 ** settings['levels'] - 1) // 3}*n"]
    return None
