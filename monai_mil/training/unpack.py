"""A network's whole output as keys of a case, for the handlers of an evaluation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from monai_mil.networks import instance_scores
from monai_mil.networks.blocks import attention_moments


class UnpackOutputd(MapTransform):
    """Replace a network's output dict by its answer and set the rest of it beside, for an engine's ``postprocessing``.

    ``data[key]`` becomes ``prob`` ``[c]`` where the network's own answer is a probability, else ``logits``; a tensor in
    place of the dict, as an exported program gives it, is taken for ``logits``. ``attention``, ``instance_logits``,
    ``heatmap``, ``mask`` and whatever else the network gave (see
    :mod:`monai_mil.networks.contract`) become keys of their own, as it gave them, padding and all. Where the output can
    localise, ``scores`` ``[c, n]`` are its instance scores. Where it has attention and the case ``positions_mm``
    ``[n]``, ``attention_center_mm`` and ``attention_width_mm`` ``[h]`` are the mean position of each head's attention
    and its standard deviation.

    Args:
        keys: of decollated outputs of :class:`FullOutputInferer`, or of logits.
        sigmoid: make a probability of the logits of a network whose own answer is one, where an exported program of it
            gives them alone.
        allow_missing_keys: skip absent keys.

    Examples:
        >>> import torch
        >>> from monai_mil.training import UnpackOutputd
        >>> item = {"pred": {"logits": torch.zeros(2), "attention": torch.tensor([[0.75, 0.25]])}}
        >>> item = UnpackOutputd("pred")(item)
        >>> item["pred"], item["scores"]
        (tensor([0., 0.]), tensor([[0.7500, 0.2500],
                [0.7500, 0.2500]]))
    """

    def __init__(self, keys: KeysCollection = "pred", sigmoid: bool = False, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.sigmoid = sigmoid

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Unpack ``data[key]``; the input dictionary is left as it is."""
        unpacked = dict(data)
        for key in self.key_iterator(unpacked):
            given = unpacked[key]
            output: dict[str, Tensor] = dict(given) if isinstance(given, Mapping) else {"logits": given}
            if self.sigmoid and "prob" not in output:
                output["prob"] = torch.sigmoid(output["logits"])
            answer = "prob" if "prob" in output else "logits"
            unpacked.update((name, value) for name, value in output.items() if name != answer)
            unpacked[key] = output[answer]
            unpacked.update(_localisation(output, data.get("positions_mm")))
        return unpacked


def _localisation(output: Mapping[str, Tensor], positions_mm: Any) -> dict[str, Tensor]:
    found = {}
    batch = {name: value[None] for name, value in output.items()}
    if {"instance_scores", "heatmap", "attention"} & output.keys():
        found["scores"] = instance_scores(batch)[0]
    if "attention" in output and positions_mm is not None:
        attention = batch["attention"]
        positions = torch.as_tensor(positions_mm).to(attention.device)
        center, width = attention_moments(attention, positions[None], batch.get("mask"))
        found |= {"attention_center_mm": center[0], "attention_width_mm": width[0]}
    return found
