"""TransMIL for CT: a transformer over the slices of a scan (after Shao et al., NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from monai_mil.networks.blocks import AttentionLayer, DepthwisePositions, class_token_output
from monai_mil.networks.contract import MILNetwork
from monai_mil.networks.reference import class_count, load_reference, reference_parameters, size_of

REFERENCE_NAMES = {
    "cls_token": "token",
    **{f"layer{layer}.attn.": f"layer{layer}.attention." for layer in (1, 2)},
    "pos_layer.proj1.conv.": "positions.three.",
    "pos_layer.proj2.conv.": "positions.five.",
    "pos_layer.proj3.conv.": "positions.seven.",
}


class TransMIL1D(MILNetwork):
    """Class token, ``x + MHA(LN(x))``, depthwise 1-D positions, ``x + MHA(LN(x))``; the token is classified.

    The Normal Guidance paper's form of TransMIL. It differs from the original: full attention instead of Nystroem's,
    a 1-D position encoding over slices instead of a 2-D one over a squared sequence, no projection of the features
    and no norm behind the last layer. The order of the slices matters.

    The output holds ``logits``, ``bag`` ``[b, d]`` and the class token's attention to the slices in the last layer:
    ``attention_share``, of which the token itself keeps a part, ``attention``, the same brought to sum 1, and
    ``attention_logits``, the share's logarithm. A slice's score is its attention, averaged over heads.

    A scan is worked on whole. The first layer's time is quadratic in the number of slices, its memory linear; the
    last layer, where only the token's row is used, is linear in both. A scan has at most a few thousand slices; for
    bags of a million use a network whose attention is not between instances.

    Args:
        in_channels: ``d``, width of a slice's features.
        num_classes: ``c``.
        heads: ``h``, attention distributions of a layer; a divisor of ``d``.

    Raises:
        ValueError: ``heads`` does not divide ``in_channels``.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import TransMIL1D
        >>> network = TransMIL1D(in_channels=16, num_classes=2, heads=4)
        >>> output = network(torch.randn(1, 16, 40), return_dict=True)
        >>> bool((output["attention_share"].sum(dim=2) < 1).all())  # the class token keeps a part for itself
        True
    """

    def __init__(self, in_channels: int, num_classes: int, heads: int = 8) -> None:
        super().__init__(num_classes)
        if in_channels % heads:
            raise ValueError(f"heads must divide the width of the features, got {heads} and {in_channels}")
        self.token = nn.Parameter(torch.randn(1, in_channels))
        self.layer1 = AttentionLayer(in_channels, heads)
        self.positions = DepthwisePositions(in_channels)
        self.layer2 = AttentionLayer(in_channels, heads)
        self.classifier = nn.Linear(in_channels, num_classes)

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        slices = image.transpose(1, 2).to(self.token.dtype)
        if mask is not None:
            slices = slices.masked_fill(~mask[:, :, None], 0.0)
        token = self.token.expand(slices.shape[0], 1, -1)
        mixed = self.layer1(token, slices, mask)
        token = token + mixed[:, :1]
        slices = self.layer2.normalise(self.positions(slices + mixed[:, 1:], mask))
        asking = self.layer2.normalise(token)
        scores = self.layer2.token_scores(asking, slices, mask)
        token = token + self.layer2.token_row(asking, slices, scores)
        return class_token_output(token, scores, self.classifier.weight, self.classifier.bias)

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        return TransMIL1D(12, 3, heads=4), (12,)

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor], heads: int = 8) -> TransMIL1D:
        """The reference's TransMIL pooling, with its classifier where the checkpoint has one.

        Args:
            state_dict: parameters under the reference's names.
            heads: as in the constructor; a checkpoint does not tell.

        Raises:
            ValueError: the names or shapes are another network's.
        """
        parameters = reference_parameters(state_dict, REFERENCE_NAMES)
        network = cls(size_of(parameters, "token", 1), class_count(parameters), heads)
        load_reference(network, parameters)
        return network
