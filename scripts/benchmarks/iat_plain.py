"""The Integrated Attention Transformer the straightforward way: every matrix of the Nystroem attention is made."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks import IAT


class PlainNystrom(nn.Module):
    """The attention of ``NystromAttention`` from its parameters, by its definition."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.heads, self.landmarks = ours.heads, ours.landmarks
        self.project, self.output = ours.project, ours.output
        self.kernel = nn.Parameter(ours.mix.weight.detach()[..., None].clone())

    def forward(self, rows: Tensor) -> Tensor:
        _, n, width = rows.shape
        padded = F.pad(rows, (0, 0, -n % self.landmarks, 0))
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.project(padded).chunk(3, dim=2)
        )
        query = query * (width // self.heads) ** -0.5
        query_marks, key_marks = (part.unflatten(2, (self.landmarks, -1)).mean(dim=3) for part in (query, key))
        to_marks = (query @ key_marks.mT).softmax(dim=-1)
        between = (query_marks @ key_marks.mT).softmax(dim=-1)
        from_marks = (query_marks @ key.mT).softmax(dim=-1)
        mixed = (to_marks @ _inverse(between)) @ (from_marks @ value)
        # The other way round in space: the form with the tokens in the second axis has wrong gradients on CPUs.
        mixed = mixed + F.conv2d(value.mT, self.kernel.mT, padding=(0, 16), groups=self.heads).mT
        return self.output(mixed.transpose(1, 2).flatten(2))[:, -n:]


def _inverse(matrix: Tensor) -> Tensor:
    inverse = matrix.mT / (matrix.abs().sum(dim=-1).max() * matrix.abs().sum(dim=-2).max())
    one = torch.eye(matrix.shape[-1], device=matrix.device)
    for _ in range(6):
        product = matrix @ inverse
        inverse = 0.25 * inverse @ (13 * one - product @ (15 * one - product @ (7 * one - product)))
    return inverse


class PlainIAT(nn.Module):
    """The same answer as the network it is made from, whose other layers it uses."""

    def __init__(self, ours: IAT) -> None:
        super().__init__()
        self.ours = ours
        self.attentions = nn.ModuleList(PlainNystrom(block.attention) for block in ours.blocks)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[1, c]`` and class evidence ``[1, c, n]`` of rows ``[1, n, d]``."""
        bags = []
        for block, attention in zip(self.ours.blocks, self.attentions, strict=True):
            rows = F.gelu(block.norm_project(block.project(rows)))
            rows = block.residual_scale * rows + attention(block.norm_attention(rows))
            instances = F.gelu(block.instance(block.norm(rows)))
            tanh, sigmoid = block.gates(instances).chunk(2, dim=2)
            scores = block.score(tanh.tanh() * sigmoid.sigmoid()).mT
            bags.append(F.gelu(block.norm_bag(block.bag(block.norm(scores.softmax(dim=2) @ rows))))[:, 0])
        bag = self.ours.fusion(torch.stack(bags, dim=2))[:, :, 0]
        return self.ours.classifier(bag), self.ours.branch(instances[:, None])
