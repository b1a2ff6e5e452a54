"""Mean and max over the slices' features, then a linear classifier: the CT baselines without attention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from monai_mil.networks.contract import ChunkedNetwork, check_chunks, exact_dtype, exact_matmul
from monai_mil.networks.reference import load_reference, reference_parameters, size_of


class FeaturePooling(ChunkedNetwork):
    """Pool the features over the instances, ``z = pool_i x_i``, then ``logits = C z + b``.

    The output holds ``logits``, ``bag`` ``[b, d]`` and ``instance_scores``.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__(num_classes)
        self.classifier = nn.Linear(in_channels, num_classes)

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        bag, scores = self._pool(image, mask)
        return self._answer(bag, scores)

    @torch.jit.unused
    def _answer_chunks(self, chunks: Iterable[Tensor | np.ndarray]) -> dict[str, Tensor]:
        weight = self.classifier.weight
        rows = (chunk.to(exact_dtype(weight.dtype)) for chunk in check_chunks(chunks, weight.device))
        pooled, scores = self._stream(chunk for chunk in rows if len(chunk))
        return self._answer(pooled[None], scores[None, None])

    def _answer(self, bag: Tensor, scores: Tensor) -> dict[str, Tensor]:
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "bag": bag,
            "instance_scores": scores.expand(-1, self.num_classes, -1),
        }

    def _pool(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The bag vectors ``[b, d]`` and the scores ``[b, 1, n]``."""
        raise NotImplementedError

    @torch.jit.unused
    def _stream(self, chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """The bag vector ``[d]`` and the scores ``[n]`` of one bag in chunks ``[m, d]``, none empty."""
        raise NotImplementedError

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor]) -> Self:
        """The reference's classifier behind max or mean pooling; pooling has no parameters.

        Raises:
            ValueError: the names or shapes are another network's.
        """
        parameters = reference_parameters(state_dict, {})
        network = cls(*(size_of(parameters, "classifier.weight", axis) for axis in (1, 0)))
        load_reference(network, parameters)
        return network


class FeatureMeanPooling(FeaturePooling):
    """The bag vector is the mean of the features; every instance has the same score, ``1 / n``.

    See :class:`FeaturePooling` for the arguments and the output.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import FeatureMeanPooling
        >>> network = FeatureMeanPooling(in_channels=2, num_classes=1)
        >>> scan = torch.tensor([[[1.0, 3.0], [0.0, 2.0]]])  # two slices (1, 0) and (3, 2)
        >>> network(scan, return_dict=True)["bag"]
        tensor([[2., 1.]])
    """

    def _pool(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        real = torch.ones_like(image[:, :1]) if mask is None else mask[:, None]
        real = real.to(exact_dtype(self.classifier.weight.dtype))
        share = real / real.sum(dim=2, keepdim=True)
        if mask is not None:
            image = image.masked_fill(~mask[:, None], 0.0)
        return exact_matmul(share, image.transpose(1, 2).to(share.dtype)).squeeze(1), share

    @torch.jit.unused
    def _stream(self, chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        total, count = torch.zeros_like(self.classifier.weight[0], dtype=torch.float64), 0
        for rows in chunks:
            total += rows.sum(dim=0, dtype=torch.float64)
            count += len(rows)
        if count == 0:
            raise ValueError("a bag without instances has no prediction")
        mean = (total / count).to(exact_dtype(self.classifier.weight.dtype))
        return mean, mean.new_full((count,), 1 / count)


class FeatureMaxPooling(FeaturePooling):
    """The bag vector is the highest value of every feature; an instance's score is the share of features it gives.

    Of instances that tie for a feature the first one gives it. See :class:`FeaturePooling` for the arguments and the
    output.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import FeatureMaxPooling
        >>> network = FeatureMaxPooling(in_channels=2, num_classes=1)
        >>> scan = torch.tensor([[[1.0, 3.0], [4.0, 2.0]]])  # two slices (1, 4) and (3, 2)
        >>> output = network(scan, return_dict=True)
        >>> output["bag"], output["instance_scores"].squeeze()
        (tensor([[3., 4.]]), tensor([0.5000, 0.5000]))
    """

    def _pool(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if mask is not None:
            image = image.masked_fill(~mask[:, None], -float("inf"))
        highest, giver = torch.max(image, dim=2)
        highest = highest.to(exact_dtype(self.classifier.weight.dtype))
        given = torch.zeros_like(image[:, 0], dtype=highest.dtype)
        given = given.scatter_add(1, giver, torch.ones_like(highest)) / image.shape[1]
        return highest, given[:, None]

    @torch.jit.unused
    def _stream(self, chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        highest = torch.full_like(self.classifier.weight[0], -torch.inf)
        giver = torch.zeros_like(highest, dtype=torch.long)
        count = 0
        for rows in chunks:
            value, index = rows.max(dim=0)
            higher = value > highest
            highest = torch.where(higher, value.to(highest.dtype), highest)
            giver = torch.where(higher, index + count, giver)
            count += len(rows)
        if count == 0:
            raise ValueError("a bag without instances has no prediction")
        return highest, torch.bincount(giver, minlength=count).to(highest.dtype) / len(highest)
