"""A classifier of single slices, trained on slice labels: the upper bound of MIL on the same features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.contract import MILNetwork, exact_matmul
from monai_mil.networks.reference import load_reference, reference_parameters, size_of


class SliceClassifier(MILNetwork):
    """Classify every slice from a window of slices around it; trained on slice labels (``InstanceBCE``).

    ``g = C (k * x) + b``, where ``k`` is a depthwise convolution over the slices, zero-padded to the same length (of
    an even kernel the longer side reaches forward). As both are linear, one product with ``C k`` gives all taps.

    The output holds ``instance_logits`` ``[b, c, n]``, their sigmoid as ``instance_scores``, and ``logits``, the
    highest of every class: a scan shows what its most suspicious slice shows.

    Args:
        in_channels: ``d``, width of a slice's features.
        num_classes: ``c``.
        kernel: width of the window in slices.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import SliceClassifier
        >>> network = SliceClassifier(in_channels=16, num_classes=1, kernel=3)
        >>> output = network(torch.randn(1, 16, 40), return_dict=True)
        >>> list(output["instance_logits"].shape)
        [1, 1, 40]
        >>> torch.equal(output["logits"], output["instance_logits"].amax(dim=2))
        True
    """

    def __init__(self, in_channels: int, num_classes: int, kernel: int = 1) -> None:
        super().__init__(num_classes)
        self.kernel = kernel
        self.window = nn.Conv1d(in_channels, in_channels, kernel, groups=in_channels)
        self.classifier = nn.Linear(in_channels, num_classes)

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        image = image.to(self.classifier.weight.dtype)
        if mask is not None:
            image = image.masked_fill(~mask[:, None], 0.0)
        logits = self._instance_logits(image)
        scores = torch.sigmoid(logits)
        highest = logits
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], 0.0)
            highest = logits.masked_fill(~mask[:, None], -float("inf"))
        return {"logits": highest.amax(dim=2), "instance_logits": logits, "instance_scores": scores}

    def _instance_logits(self, image: Tensor) -> Tensor:
        taps = self.classifier.weight * self.window.weight.permute(2, 1, 0)  # [kernel, c, d]
        evidence = exact_matmul(taps.flatten(0, 1), image)
        evidence = F.pad(evidence, [(self.kernel - 1) // 2, self.kernel // 2])
        shift = self.window.bias
        assert shift is not None  # TorchScript cannot know
        bias = exact_matmul(self.classifier.weight, shift[:, None]) + self.classifier.bias[:, None]
        length, classes = image.shape[2], self.num_classes
        logits = evidence[:, :classes, :length] + bias
        for tap in range(1, self.kernel):
            logits = logits + evidence[:, tap * classes : (tap + 1) * classes, tap : tap + length]
        return logits

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor]) -> SliceClassifier:
        """The reference's instance-level classifier.

        Raises:
            ValueError: the names or shapes are another network's.
        """
        parameters = reference_parameters(state_dict, {"instance_conv.conv.": "window."})
        kernel = size_of(parameters, "window.weight", 2)
        in_channels, num_classes = (size_of(parameters, "classifier.weight", axis) for axis in (1, 0))
        network = cls(in_channels, num_classes, kernel)
        load_reference(network, parameters)
        return network
