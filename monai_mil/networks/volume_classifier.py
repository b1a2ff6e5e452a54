"""Classifiers of whole scans: a 3D network over the volume, the supervised reference beside MIL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul


class ConvolutionEncoder3D(nn.Sequential):
    """Blocks of a 3 x 3 x 3 convolution, ReLU, maximum of 2 x 2 x 2 and batch norm: ``[b, c, z, y, x]`` to 1/2^k of it.

    The 3D-CNN of Zunair et al. ("Uniformizing techniques to process CT scans with 3D CNNs", 2020): widths 64, 64, 128
    and 256. Its convolutions are not padded; these are, so that any size fits.

    Args:
        in_channels: ``c``.
        widths: channels of each of the ``k`` blocks.
    """

    def __init__(self, in_channels: int = 1, widths: Sequence[int] = (64, 64, 128, 256)) -> None:
        layers: list[nn.Module] = []
        for before, width in zip((in_channels, *widths), widths, strict=False):
            layers += [nn.Conv3d(before, width, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.BatchNorm3d(width)]
        super().__init__(*layers)


class VolumeClassifier(MILNetwork):
    """Classify a scan as one volume, and say of every place what it adds to the answer.

    The slices are resized to ``size`` (trilinear), ``f = encoder(volume)``; ``e_p = C f_p + c`` at every place ``p``;
    ``logits = mean_p e_p``. As the mean and the classifier are both linear, that is global average pooling before a
    linear classifier, and ``e`` is the class activation map (Zhou et al., CVPR 2016). With ``pooling="max"``
    ``logits = max_p e_p``: a network that was taught where the finding is (``losses.TokenDice``) says of a scan what
    it says of the most suspicious place.

    Takes scans of pixels ``[b, channels, n, h, w]``: a scan's slices are its instances. Padded slices are never seen.
    The order of the slices matters. The output holds ``logits`` and, unless it is traced or exported,
    ``detection_logits`` ``[b, c, n, y, x]``, ``e`` resized to the ``n`` slices, and its sigmoid ``heatmap``; a slice's
    score is its highest.

    For a 3D-CNN with progressive resizing, the comparator of the INSIGHT paper, train at a small ``size`` first and go
    on at larger ones (``training.ProgressiveResizing``): no weight depends on it. That paper names no network; this
    takes :class:`ConvolutionEncoder3D` for it. ``DenseNet121(3, 1, 1).features`` of MONAI gives 1,024 channels, its
    ``UNet(3, 1, 16, ...)`` 16 at every voxel.

    Args:
        encoder: maps volumes ``[b, channels, z, y, x]`` to features ``[b, features, z', y', x']``.
        features: how many channels it gives.
        num_classes: ``c``.
        size: slices, rows and columns that the encoder sees.
        pooling: ``"mean"`` of the places, or ``"max"``.

    Raises:
        ValueError: ``pooling`` is neither.

    Examples:
        >>> import torch
        >>> from monai_mil.networks.volume_classifier import ConvolutionEncoder3D, VolumeClassifier
        >>> network = VolumeClassifier(ConvolutionEncoder3D(1, (4, 8)), features=8, num_classes=1, size=(16, 32, 32))
        >>> output = network.eval()(torch.randn(1, 1, 40, 64, 64), return_dict=True)
        >>> list(output["logits"].shape), list(output["heatmap"].shape)
        ([1, 1], [1, 1, 40, 8, 8])
    """

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        num_classes: int,
        size: Sequence[int] = (32, 128, 128),
        pooling: Literal["mean", "max"] = "mean",
    ) -> None:
        super().__init__(num_classes)
        if pooling not in ("mean", "max"):
            raise ValueError(f"pooling must be 'mean' or 'max', not '{pooling}'")
        self.pooling = pooling
        self.encoder = encoder
        self.classifier = nn.Linear(features, num_classes)
        self.size = [int(side) for side in size]

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        if image.dim() != 5:
            raise ValueError(f"a scan of pixels must be [b, channels, n, h, w], got {list(image.shape)}")
        if not image.is_floating_point():
            raise ValueError("a scan of pixels must be of floating type: embed it with float16, not with uint8")
        pixels = image if image.dtype == torch.float64 else image.float()
        if mask is None:
            return self._answer(self._evidence(pixels), [image.shape[2]] * image.shape[0], None)
        volumes: list[Tensor] = []
        counts: list[int] = []
        for index in range(image.shape[0]):
            volume = pixels[index : index + 1, :, mask[index]]
            volumes.append(self._resized(volume))
            counts.append(volume.shape[2])
        return self._answer(self._of_places(torch.cat(volumes)), counts, mask)

    def _evidence(self, pixels: Tensor) -> Tensor:
        return self._of_places(self._resized(pixels))

    def _resized(self, pixels: Tensor) -> Tensor:
        return F.interpolate(pixels, self.size, mode="trilinear", align_corners=False)

    def _of_places(self, volumes: Tensor) -> Tensor:
        """``e`` of volumes of ``size``, ``[b, c, z', y', x']``."""
        found = self.encoder(volumes)
        places = exact_matmul(self.classifier.weight, found.flatten(2)) + self.classifier.bias[:, None]
        return places.to(exact_dtype(places.dtype)).unflatten(2, found.shape[2:])

    def _answer(self, evidence: Tensor, counts: list[int], mask: Tensor | None) -> dict[str, Tensor]:
        places = evidence.flatten(2)
        output = {"logits": places.amax(dim=2) if self.pooling == "max" else places.mean(dim=2)}
        if torch.jit.is_scripting():
            return output
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return output
        output["detection_logits"] = self._on_slices(evidence, counts, mask)
        output["heatmap"] = torch.sigmoid(output["detection_logits"])
        if mask is not None:
            output["heatmap"] = output["heatmap"].masked_fill(~mask[:, None, :, None, None], 0.0)
        return output

    @torch.jit.unused
    def _on_slices(self, evidence: Tensor, counts: list[int], mask: Tensor | None) -> Tensor:
        """The places' evidence on the slices ``[b, c, n, y, x]``, 0 on padding."""
        maps = []
        for index, count in enumerate(counts):
            size = (count, *evidence.shape[3:])
            found = F.interpolate(evidence[index : index + 1], size, mode="trilinear", align_corners=False)[0]
            if mask is not None:
                whole = found.new_zeros(found.shape[0], mask.shape[1], *found.shape[2:])
                whole[:, mask[index]] = found
                found = whole
            maps.append(found)
        return torch.stack(maps)

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[channels, h, w]`` of one of its instances, for the contract's tests."""
        return VolumeClassifier(ConvolutionEncoder3D(1, (2, 3)), 3, 3, size=(4, 8, 8)), (1, 8, 8)
