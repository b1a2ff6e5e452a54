"""Bags of pixels: an encoder trained together with the MIL network behind it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_mil.networks.abmil import ABMIL
from monai_mil.networks.contract import MILNetwork
from monai_mil.networks.graph import is_recorded


class LeNetEncoder(nn.Sequential):
    """The convolutions of Ilse, Tomczak and Welling 2018, Table 5 (after LeNet-5): ``[m, 1, 28, 28]`` to ``[m, 800]``.

    Their fully connected layer with 500 units is the hidden layer of the ABMIL that follows:
    ``InstanceEncoderMIL(LeNetEncoder(), ABMIL(800, 2, hidden_dim=500, attention_dim=128))``.
    """

    def __init__(self, in_channels: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, 20, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, kernel_size=5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )


class InstanceEncoderMIL(MILNetwork):
    """Encode every instance's pixels, then classify the bag of features.

    Takes bags ``[b, channels, n, h, w]`` and returns what the MIL network behind it returns. Padding is never encoded,
    so that batch statistics are those of real instances.

    Args:
        encoder: maps instances ``[m, channels, h, w]`` to features ``[m, d]``.
        mil: any network for bags ``[b, d, n]``.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import ABMIL, InstanceEncoderMIL
        >>> encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16))
        >>> network = InstanceEncoderMIL(encoder, ABMIL(in_channels=16, num_classes=2))
        >>> list(network(torch.randn(1, 1, 5, 8, 8)).shape)  # one bag of five images of 8 x 8 pixels
        [1, 2]
    """

    def __init__(self, encoder: nn.Module, mil: MILNetwork) -> None:
        super().__init__(mil.num_classes)
        self.encoder = encoder
        self.mil = mil
        self.chunk_instances = 1024

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        if image.dim() != 5:
            raise ValueError(f"a bag of pixels must be [b, channels, n, h, w], got {list(image.shape)}")
        instances = image.transpose(1, 2)
        if mask is None:
            features = self._encode(instances.flatten(0, 1))
            features = features.reshape(instances.shape[0], instances.shape[1], -1)
        else:
            encoded = self._encode(instances[mask])
            features = encoded.new_zeros(instances.shape[0], instances.shape[1], encoded.shape[1])
            features[mask] = encoded
        return self.mil.describe(features.transpose(1, 2), mask)

    def _encode(self, pixels: Tensor) -> Tensor:
        """Features ``[m, d]``; without gradients a chunk of instances at a time."""
        pixels = pixels if pixels.dtype == torch.float64 else pixels.float()
        if torch.is_grad_enabled() or is_recorded():
            return self.encoder(pixels)
        return torch.cat([self.encoder(chunk) for chunk in pixels.split(self.chunk_instances)])

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[channels, h, w]`` of one of its instances, for the contract's tests."""
        return InstanceEncoderMIL(LeNetEncoder(), ABMIL(800, 3, hidden_dim=16, attention_dim=8)), (1, 28, 28)
