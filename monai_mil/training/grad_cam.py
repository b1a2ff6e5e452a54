"""Grad-CAM inside an evaluation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from monai_mil.networks import grad_cam
from monai_mil.training.distributed import unwrap
from monai_mil.training.inferers import FullOutputInferer


class GradCAMInferer(FullOutputInferer):
    """A :class:`FullOutputInferer` whose output also holds ``grad_cam`` ``[b, c, n(, h, w)]``.

    ``HeatmapSaver`` and ``DiceSaver`` take it with ``key="grad_cam"``.

    Args:
        layer: what Grad-CAM looks at, see :func:`monai_mil.networks.grad_cam`.
    """

    def __init__(self, layer: str | None = None) -> None:
        super().__init__()
        self.layer = layer

    def __call__(
        self, inputs: Tensor, network: Any, *args: Any, positions: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """See :class:`FullOutputInferer`; ``kwargs`` go to Grad-CAM too."""
        output = super().__call__(inputs, network, *args, positions=positions, **kwargs)
        return {**output, "grad_cam": grad_cam(unwrap(network), inputs, *args, layer=self.layer, **kwargs)}
