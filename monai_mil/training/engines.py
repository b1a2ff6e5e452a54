"""MONAI's engines with mixed precision that is the same on every device: network in bfloat16, loss in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.inferers import Inferer
from torch import Tensor


class BagTrainer(SupervisedTrainer):
    """MONAI's trainer, whose ``amp`` is for CUDA alone and puts the loss into float16 too, with another ``amp``.

    Args:
        args: of ``monai.engines.SupervisedTrainer``.
        amp: run the network, not the loss, under autocast in bfloat16 on the engine's device. Parameters and their
            gradients stay float32; no gradient is scaled, for bfloat16 has the range of float32.
        kwargs: likewise.

    Examples:
        >>> import torch
        >>> from monai_mil.losses import BagCrossEntropy
        >>> from monai_mil.networks import ABMIL
        >>> from monai_mil.training import BagTrainer
        >>> network = ABMIL(8, 2)
        >>> bags = [{"image": torch.randn(1, 8, 5), "label": torch.ones(1, dtype=torch.long)}]
        >>> optimizer = torch.optim.SGD(network.parameters(), 0.1)
        >>> trainer = BagTrainer("cpu", 1, bags, network, optimizer, torch.nn.CrossEntropyLoss(), amp=True)
        >>> trainer.run()
        >>> network.hidden.weight.grad.dtype
        torch.float32
    """

    def __init__(self, *args: Any, amp: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if amp:
            self.inferer = _InBfloat16(self.inferer, self.state.device)


class BagEvaluator(SupervisedEvaluator):
    """MONAI's evaluator, likewise.

    Args:
        args: of ``monai.engines.SupervisedEvaluator``.
        amp: see :class:`BagTrainer`.
        kwargs: likewise.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import ABMIL
        >>> from monai_mil.training import BagEvaluator
        >>> bags = [{"image": torch.randn(1, 8, 5)}]
        >>> evaluator = BagEvaluator("cpu", bags, ABMIL(8, 2), amp=True)
        >>> evaluator.run()
        >>> list(evaluator.state.output[0]["pred"].shape)
        [2]
    """

    def __init__(self, *args: Any, amp: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if amp:
            self.inferer = _InBfloat16(self.inferer, self.state.device)


class _InBfloat16(Inferer):
    """Another inferer under autocast."""

    def __init__(self, inferer: Inferer, device: torch.device) -> None:
        super().__init__()
        self.inferer = inferer
        self.device = device

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return self.inferer(inputs, network, *args, **kwargs)
