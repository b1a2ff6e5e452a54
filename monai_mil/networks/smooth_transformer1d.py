"""The smooth transformer: TransMIL for CT whose attention output is smoothed along the scan."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_mil.networks.blocks import (
    AttentionLayer,
    DepthwisePositions,
    SmoothOperator,
    class_token_output,
    mask_with_token,
)
from monai_mil.networks.contract import MILNetwork
from monai_mil.networks.reference import class_count, load_reference, reference_parameters, size_of
from monai_mil.networks.transmil1d import REFERENCE_NAMES


class SmoothTransformer1D(MILNetwork):
    """:class:`~monai_mil.networks.TransMIL1D` with ``x + S MHA(LN(x))`` in both layers, SmTP of the reference.

    ``S`` is the smooth operator (:mod:`monai_mil.networks.blocks.smooth`), one strength a layer. It runs over the
    tokens, so that the class token is the neighbour of the first slices. In the last layer only the token's row is
    used, and that depends on the tokens within reach of ``S``: attention is computed for those alone.

    The order of the slices matters. The output, the scores and the cost are those of TransMIL1D; ``attention`` is the
    class token's own, before ``S``.

    Args:
        in_channels: ``d``, width of a slice's features.
        num_classes: ``c``.
        heads: ``h``, attention distributions of a layer; a divisor of ``d``.
        neighbours: reach of one averaging step, in tokens.
        steps: number of averaging steps.
        exact: solve for the limit of infinitely many steps instead; every token is then in reach.

    Raises:
        ValueError: ``heads`` does not divide ``in_channels``, or ``neighbours`` or ``steps`` is below 1.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import SmoothTransformer1D
        >>> network = SmoothTransformer1D(in_channels=16, num_classes=2, heads=4, steps=2)
        >>> output = network(torch.randn(1, 16, 40), return_dict=True)
        >>> list(output["attention"].shape)
        [1, 4, 40]
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        heads: int = 8,
        neighbours: int = 1,
        steps: int = 10,
        exact: bool = False,
    ) -> None:
        super().__init__(num_classes)
        if in_channels % heads:
            raise ValueError(f"heads must divide the width of the features, got {heads} and {in_channels}")
        self.reach = -1 if exact else neighbours * steps
        self.token = nn.Parameter(torch.randn(1, in_channels))
        self.layer1 = AttentionLayer(in_channels, heads)
        self.smooth1 = SmoothOperator(neighbours, steps, exact)
        self.positions = DepthwisePositions(in_channels)
        self.layer2 = AttentionLayer(in_channels, heads)
        self.smooth2 = SmoothOperator(neighbours, steps, exact)
        self.classifier = nn.Linear(in_channels, num_classes)

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        slices = image.transpose(1, 2).to(self.token.dtype)
        tokens: Tensor | None = None
        if mask is not None:
            slices = slices.masked_fill(~mask[:, :, None], 0.0)
            tokens = mask_with_token(mask)
        token = self.token.expand(slices.shape[0], 1, -1)
        mixed = self.smooth1(self.layer1(token, slices, mask).transpose(1, 2), tokens).transpose(1, 2)
        token = token + mixed[:, :1]
        slices = self.positions(slices + mixed[:, 1:], mask)
        scores = self.layer2.token_scores(self.layer2.normalise(token), self.layer2.normalise(slices), mask)
        near = -1
        if self.reach >= 0 and not torch.compiler.is_compiling():  # a graph would hold for longer scans only
            near = self.reach + 1
            tokens = tokens[:, :near] if tokens is not None else None
        mixed = self.smooth2(self.layer2(token, slices, mask, near).transpose(1, 2), tokens).transpose(1, 2)
        return class_token_output(token + mixed[:, :1], scores, self.classifier.weight, self.classifier.bias)

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        return SmoothTransformer1D(12, 3, heads=4), (12,)

    @classmethod
    def from_reference(
        cls, state_dict: Mapping[str, Tensor], heads: int = 8, neighbours: int = 1, steps: int = 10, exact: bool = False
    ) -> SmoothTransformer1D:
        """The reference's smooth transformer, with its classifier where the checkpoint has one.

        Args:
            state_dict: parameters under the reference's names.
            heads: as in the constructor; a checkpoint does not tell.
            neighbours: likewise.
            steps: likewise.
            exact: likewise.

        Raises:
            ValueError: the names or shapes are another network's.
        """
        smooth = {f"layer{layer}.sm_layer.": f"smooth{layer}." for layer in (1, 2)}
        parameters = reference_parameters(state_dict, REFERENCE_NAMES | smooth)
        network = cls(size_of(parameters, "token", 1), class_count(parameters), heads, neighbours, steps, exact)
        load_reference(network, parameters)
        return network
