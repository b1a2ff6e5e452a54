"""CLAM: attention pooling with an instance branch (Lu et al., Nature Biomedical Engineering 2021)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.abmil import ABMIL
from monai_mil.networks.blocks import InstanceBranch, most_and_least_attended
from monai_mil.networks.contract import exact_matmul
from monai_mil.networks.graph import is_recorded
from monai_mil.networks.reference import load_reference, size_of

REFERENCE_LAYERS = {
    "hidden": r"attention_net\.0",
    "gates": r"attention_net\.\d\.(?:attention_[ab]|module)\.0",
    "score": r"attention_net\.\d\.(?:attention_c|module\.[23])",
    "classifier": r"classifiers(?:\.\d+)?",
    "branch.classifiers": r"instance_classifiers\.\d+",
}
"""This network's layers and the reference's names of theirs; several of theirs stand on top of each other in one."""


class CLAM_SB(ABMIL):  # noqa: N801
    """CLAM with a single attention branch: gated ABMIL whose extreme instances are classified while it learns.

    The bag's answer is that of :class:`ABMIL`. Beside it, a two-way classifier of every class looks at the hidden
    rows of the ``sampled`` most and least attended instances; ``InstanceSmoothSVM`` teaches it, and through it the
    hidden layer, that the former show the bag's class and the latter do not.

    The output holds ABMIL's keys and, unless ``sampled`` is 0, ``top_instance_logits`` and
    ``bottom_instance_logits`` ``[b, c, sampled]``. A bag of fewer than ``2 sampled`` instances gives half of them to
    each side, where the reference takes some for both and fails below ``sampled``. In training with dropout the branch
    draws its own zeros. TorchScript, traces and bags that come in chunks (:meth:`ABMIL.pool_chunks`) leave the branch
    out: it changes no answer.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: width of a hidden row.
        attention_dim: rows of the attention's ``V`` and ``U``.
        gated: use the attention's sigmoid branch.
        dropout: probability of zeroing a value of a hidden row in training, below 1.
        sampled: ``k``, instances of each kind that the branch sees; 0 for a network without it, which is what
            training without the instance loss wants (DDP waits for parameters that get no gradient).
        gate_dropout: probability of zeroing a value behind the attention's tanh or sigmoid in training, below 1. The
            released program has 0.25 there wherever it has ``dropout``.

    Raises:
        ValueError: ``dropout`` or ``gate_dropout`` is not in [0, 1), or ``sampled`` is negative.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import CLAM_SB
        >>> network = CLAM_SB(in_channels=16, num_classes=2, sampled=8)
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> list(output["attention"].shape), list(output["top_instance_logits"].shape)
        ([1, 1, 100], [1, 2, 8])
    """

    per_class = False

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 512,
        attention_dim: int = 256,
        gated: bool = True,
        dropout: float = 0.25,
        sampled: int = 8,
        gate_dropout: float = 0.0,
    ) -> None:
        heads = num_classes if self.per_class else 1
        super().__init__(in_channels, num_classes, hidden_dim, attention_dim, heads, gated, dropout, gate_dropout)
        if sampled < 0:
            raise ValueError(f"the instance branch cannot see {sampled} instances; 0 leaves it out")
        self.sampled = sampled
        self.classifier = nn.Linear(hidden_dim, num_classes)
        self.branch = InstanceBranch(hidden_dim, num_classes) if sampled else None

    def describe(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`MILNetwork.forward`."""
        if torch.jit.is_scripting():
            return self._whole(image, mask)
        whole = is_recorded() or self._drops_gates()
        output = self._whole(image, mask) if whole else self._in_chunks(image, mask)
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            return output
        return self._with_branch(output, image, mask)

    @torch.jit.unused
    def _with_branch(self, output: dict[str, Tensor], image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The output, with the extreme instances' class evidence in it."""
        if self.branch is None:
            return output
        top, top_real, bottom, bottom_real = most_and_least_attended(output["attention_logits"], mask, self.sampled)
        index = torch.cat([top, bottom], dim=2)
        rows = image.gather(2, index.flatten(1)[:, None].expand(-1, image.shape[1], -1)).transpose(1, 2)
        hidden = F.dropout(F.relu(self.hidden(rows.to(self.hidden.weight.dtype))), self.dropout, self.training)
        evidence = self.branch(hidden.unflatten(1, index.shape[1:]))
        for key, part, real in (("top", 0, top_real), ("bottom", 1, bottom_real)):
            logits = evidence.narrow(2, part * self.sampled, self.sampled)
            output[f"{key}_instance_logits"] = logits.masked_fill(~real, -float("inf"))
        return output

    @classmethod
    def from_reference(cls, state_dict: Mapping[str, Tensor], dropout: float = 0.25, sampled: int = 8) -> Self:
        """A CLAM checkpoint of the same kind, single or multiple branch, gated or not.

        Args:
            state_dict: parameters under CLAM's names.
            dropout: as in the constructor; a checkpoint does not tell.
            sampled: likewise.

        Raises:
            ValueError: the names or shapes are not those of this network.
        """
        state = {
            f"{ours}.{key}": part
            for ours, theirs in REFERENCE_LAYERS.items()
            for key, part in _joined(state_dict, theirs).items()
            if sampled or not ours.startswith("branch.")
        }
        hidden_dim, in_channels = (size_of(state, "hidden.weight", axis) for axis in (0, 1))
        attention_dim, num_classes = size_of(state, "score.weight", 1), size_of(state, "classifier.weight", 0)
        gated = size_of(state, "gates.weight", 0) > attention_dim
        network = cls(in_channels, num_classes, hidden_dim, attention_dim, gated, dropout, sampled)
        load_reference(network, state)
        return network


class CLAM_MB(CLAM_SB):  # noqa: N801
    """CLAM with multiple branches: every class has its own attention, bag vector and extreme instances.

    ``logits_c = w_c z_c + b_c``. The keys are those of :class:`CLAM_SB` with one attention head a class, and that
    attention as ``instance_scores`` ``[b, c, n]``.

    Args:
        in_channels: see :class:`CLAM_SB`, also for the others.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import CLAM_MB
        >>> network = CLAM_MB(in_channels=16, num_classes=3)
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> list(output["attention"].shape)  # every class looks for itself
        [1, 3, 100]
    """

    per_class = True

    def _answer(self, bag: Tensor, scores: Tensor) -> dict[str, Tensor]:
        attention = torch.softmax(scores, dim=2)
        logits = exact_matmul(bag[:, :, None], self.classifier.weight[:, :, None]).flatten(1) + self.classifier.bias
        return {
            "logits": logits,
            "attention": attention,
            "attention_logits": scores,
            "bag": bag.flatten(1),
            "instance_scores": attention,
        }


def _joined(state_dict: Mapping[str, Tensor], pattern: str) -> dict[str, Tensor]:
    """Weight and bias of the layers whose names match, in order, one on top of the next."""
    found = {}
    for key in ("weight", "bias"):
        names = [name for name in state_dict if re.fullmatch(rf"{pattern}\.{key}", name)]
        if names:
            found[key] = torch.cat([state_dict[name].float() for name in sorted(names, key=lambda n: (len(n), n))])
    return found
