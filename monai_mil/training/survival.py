"""From a network's logits to risks, for the handlers of a survival evaluation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_mil.networks.blocks import survival_curve, survival_risk


class SurvivalRiskd(MapTransform):
    """Replace the logits of ``K`` time bins by their incidence ``[K]``, for an engine's ``postprocessing``.

    Beside it ``survival`` ``[K]`` is the probability that the event comes after each bin, and ``risk`` a scalar, higher
    for an earlier event. Comes after :class:`UnpackOutputd` where the network gives its whole output; where its own
    answer is a probability, the ``logits`` beside are taken.

    Args:
        keys: of decollated logits.
        allow_missing_keys: skip absent keys.

    Examples:
        >>> import torch
        >>> from monai_mil.training import SurvivalRiskd
        >>> item = SurvivalRiskd("pred")({"pred": torch.zeros(4)})
        >>> item["pred"], item["survival"]
        (tensor([0.2500, 0.2500, 0.2500, 0.2500]), tensor([0.7500, 0.5000, 0.2500, 0.0000]))
    """

    def __init__(self, keys: KeysCollection = "pred", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the risk of ``data[key]``; the input dictionary is left as it is."""
        done = dict(data)
        for key in self.key_iterator(done):
            logits = done.get("logits", done[key])
            done |= {"risk": survival_risk(logits), "survival": survival_curve(logits)}
            done[key] = torch.softmax(logits.float(), dim=-1)
        return done
