"""DTFD-MIL: double-tier feature distillation over pseudo-bags (Zhang et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import ChunkedAttentionNetwork, GatedAttention, ReadBag, RunningPool, write_columns
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul

Distillation = Literal["AFS", "MaxS", "MaxMinS"]


class DTFDMIL(ChunkedAttentionNetwork):
    """A bag is parted into pseudo-bags that share its label; what each distils is a bag for a second attention.

    ``h_i = relu(W x_i)``. First tier, in every pseudo-bag ``m``: ``a = softmax(s)`` of gated attention over its
    instances; ``F_m = sum_i a_i h_i``; ``y_m = C F_m + c``. What an instance has to say of class ``k`` is derived from
    these: ``L_ik = a_i (C h_i)_k``; ``p_i = softmax(L_i)``. Distilled are ``F_m`` (``"AFS"``), the instance with the
    highest ``p`` of the last class (``"MaxS"``), or it and the one with the lowest (``"MaxMinS"``). Second tier: gated
    attention over what was distilled, ``z``, and ``logits = C' z + c'``. Both tiers are taught the label of the bag,
    the first by ``BranchLoss``.

    Pseudo-bags are drawn anew in every training step, as equal as can be. In evaluation instance ``i`` belongs to
    pseudo-bag ``i mod M``: the released program draws there too, so that its answer differs from run to run. As there
    the answer depends on the order of the instances; its two optimisers do what one does here. Bags of fewer instances
    than pseudo-bags leave some empty, which have no part in anything.

    The output holds ``logits``, ``bag`` ``[b, hidden_dim]``, ``branch_logits``, the ``y_m`` ``[b, M, c]``, ``-inf``
    where a pseudo-bag is empty; the first tier's ``attention_logits`` and, over the whole bag, their softmax as
    ``attention``; ``instance_logits``, the ``L_i``, and ``p_i`` as ``instance_scores`` ``[b, c, n]``.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: width of ``h``.
        attention_dim: rows of each gate, in both tiers.
        pseudo_bags: ``M``.
        distillation: what the second tier sees.
        multi_label: classes do not exclude each other; ``p_i`` is then a sigmoid, as it is for one class.

    Raises:
        ValueError: there is no such ``distillation``, or no pseudo-bag.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import DTFDMIL
        >>> network = DTFDMIL(in_channels=16, num_classes=2, pseudo_bags=5).eval()
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)
        >>> list(output["branch_logits"].shape), list(output["instance_scores"].shape)
        ([1, 5, 2], [1, 2, 100])
    """

    score_parameters = ("hidden", "attention")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 512,
        attention_dim: int = 128,
        pseudo_bags: int = 4,
        distillation: Distillation = "AFS",
        multi_label: bool = False,
    ) -> None:
        super().__init__(num_classes)
        if distillation not in get_args(Distillation):
            raise ValueError(f"distillation must be one of {', '.join(get_args(Distillation))}, not '{distillation}'")
        if pseudo_bags < 1:
            raise ValueError(f"a bag has at least one pseudo-bag, not {pseudo_bags}")
        self.pseudo_bags = pseudo_bags
        self.distillation = str(distillation)
        self.exclusive = num_classes > 1 and not multi_label
        self.rereads = self.distillation != "AFS"  # for the instances that are chosen
        self.hidden = nn.Linear(in_channels, hidden_dim, bias=False)
        self.attention = GatedAttention(hidden_dim, attention_dim)
        self.pseudo_classifier = nn.Linear(hidden_dim, num_classes)
        self.bag_attention = GatedAttention(hidden_dim, attention_dim)
        self.classifier = nn.Linear(hidden_dim, num_classes)

    def _whole(self, image: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        rows = self._rows(image)
        if mask is not None:
            rows = rows.masked_fill(~mask[:, :, None], 0.0)
        scores = self.attention(rows, mask)
        members = self._members(image, mask)
        real = members.any(dim=2)
        share = scores.masked_fill(~members, -float("inf")).masked_fill(~real[:, :, None], 0.0)
        share = torch.softmax(share, dim=2).masked_fill(~members, 0.0)
        pseudo = exact_matmul(share, rows)
        evidence = exact_matmul(self.pseudo_classifier.weight, rows.transpose(1, 2)) * share.sum(dim=1, keepdim=True)
        prob = self._probabilities(evidence)
        features, kept = pseudo, real
        if self.distillation != "AFS":
            place, kept = self._choose(prob[:, -1:], members, real)
            features = rows.gather(1, place[:, :, None].expand(-1, -1, rows.shape[2]))
        if mask is not None:
            evidence = evidence.masked_fill(~mask[:, None], -float("inf"))
            prob = prob.masked_fill(~mask[:, None], 0.0)
        return self._answer(features, kept, pseudo, real, scores, evidence, prob)

    @torch.jit.unused
    def _answer_bag(self, read: ReadBag) -> dict[str, Tensor]:
        weight = self.pseudo_classifier.weight
        pool = RunningPool(self.pseudo_bags, weight.shape[1], exact_dtype(weight.dtype), weight.device)
        words = pool.seen.new_empty(len(weight), 65536)
        for part in read():
            rows = self._rows(part.T[None])
            words = write_columns(words, pool.count, exact_matmul(weight, rows[0].T))
            members = self._in_turn(torch.arange(len(part), device=weight.device)[None] + pool.count)[0]
            pool.add(self.attention(rows, None)[0].masked_fill(~members, -torch.inf), rows[0])
        pseudo, apart = pool.result()
        members = apart[None] > -torch.inf
        real = members.any(dim=2)
        share = torch.softmax(apart[None, :, :].masked_fill(~real[:, :, None], 0.0), dim=2).masked_fill(~members, 0.0)
        evidence = words[None, :, : pool.count] * share.sum(dim=1, keepdim=True)
        prob = self._probabilities(evidence)
        features, kept = pseudo[None], real
        if self.distillation != "AFS":
            place, kept = self._choose(prob[:, -1:], members, real)
            features = self._rows(_instances_at(place[0], read).T[None])
        return self._answer(features, kept, pseudo[None], real, apart.amax(dim=0)[None, None], evidence, prob)

    def _probabilities(self, evidence: Tensor) -> Tensor:
        return torch.softmax(evidence, dim=1) if self.exclusive else torch.sigmoid(evidence)

    def _answer(
        self,
        features: Tensor,
        kept: Tensor,
        pseudo: Tensor,
        real: Tensor,
        scores: Tensor,
        evidence: Tensor,
        prob: Tensor,
    ) -> dict[str, Tensor]:
        """From what the second tier sees ``[b, t, i]``, which of it is real, and what the first has found."""
        spoken = exact_matmul(pseudo, self.pseudo_classifier.weight.T) + self.pseudo_classifier.bias
        weight = torch.softmax(self.bag_attention(features, kept), dim=2)
        bag = exact_matmul(weight, features)[:, 0]
        return {
            "logits": exact_matmul(bag, self.classifier.weight.T) + self.classifier.bias,
            "attention": torch.softmax(scores, dim=2),
            "attention_logits": scores,
            "bag": bag,
            "branch_logits": spoken.masked_fill(~real[:, :, None], -float("inf")),
            "instance_logits": evidence,
            "instance_scores": prob,
        }

    @torch.jit.unused
    def attention_scores(self, image: Tensor, mask: Tensor | None, output: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`AttentionNetwork.attention_scores`."""
        return self.attention(self._rows(image), mask)

    def _rows(self, image: Tensor) -> Tensor:
        return F.relu(self.hidden(image.transpose(1, 2).to(self.hidden.weight.dtype)))

    def _members(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """Which instances belong to which pseudo-bag: bool ``[b, M, n]``, False on padding."""
        real = torch.ones_like(image[:, 0], dtype=torch.bool) if mask is None else mask
        if self.training:
            drawn = torch.rand(real.shape, device=real.device).masked_fill(~real, 2.0)
            place = drawn.argsort(dim=1).argsort(dim=1)
        else:
            place = real.long().cumsum(dim=1) - 1
        return self._in_turn(place) & real[:, None]

    def _in_turn(self, place: Tensor) -> Tensor:
        """Which of instances at these places ``[b, n]`` belong to which pseudo-bag, ``[b, M, n]``."""
        groups = torch.arange(self.pseudo_bags, device=place.device)[None, :, None]
        return (place % self.pseudo_bags)[:, None] == groups

    def _choose(self, suspicion: Tensor, members: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """The instances that the second tier sees ``[b, t]``, and which of them are real."""
        place = suspicion.masked_fill(~members, -1.0).argmax(dim=2)
        kept = real
        if self.distillation == "MaxMinS":
            place = torch.cat([place, suspicion.masked_fill(~members, 2.0).argmin(dim=2)], dim=1)
            kept = torch.cat([real, real], dim=1)
        return place, kept

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        return DTFDMIL(12, 3, hidden_dim=16, attention_dim=8, distillation="MaxMinS"), (12,)


def _instances_at(places: Tensor, read: ReadBag) -> Tensor:
    """The instances ``[t, d]`` at places ``[t]`` of a bag that comes in chunks."""
    found: list[Tensor] = [places.new_empty(0)] * len(places)
    start = 0
    for part in read():
        for index, place in enumerate(places.tolist()):
            if start <= place < start + len(part):
                found[index] = part[place - start]
        start += len(part)
    return torch.stack(found)
