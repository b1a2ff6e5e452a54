"""The image tower of CONCH v1.5 (Ding et al. 2024, arXiv 2411.19666): a ViT-L/16 read by one attention query."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GRID = 28
_TRUNK_WIDTH = 1024
_WIDTH = 768
_HEADS = 8


class AttentionPool(nn.Module):
    """One learnt query attends to all tokens; parameter names are those of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, _WIDTH))
        self.ln_q = nn.LayerNorm(_WIDTH)
        self.ln_k = nn.LayerNorm(_TRUNK_WIDTH)
        self.to_q = nn.Linear(_WIDTH, _WIDTH, bias=False)
        self.to_kv = nn.Linear(_TRUNK_WIDTH, 2 * _WIDTH, bias=False)
        self.to_out = nn.Linear(_WIDTH, _WIDTH, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``[b, t, 1024]`` to one vector ``[b, 768]``."""
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), -1, -1)
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (_HEADS, -1)).transpose(1, 2) for part in (query, key, value))
        pooled = F.scaled_dot_product_attention(query, key, value)
        return self.to_out(pooled.transpose(1, 2).flatten(1))


class ConchVision(nn.Module):
    """Pooled ``[b, 768]`` or the trunk's map ``[b, 28, 28, 1024]`` of images ``[b, 3, 448, 448]``."""

    trunk: Any

    def __init__(self, spatial: bool) -> None:
        super().__init__()
        import timm

        self.spatial = spatial
        self.trunk = timm.create_model("vit_large_patch16_224", img_size=16 * _GRID, init_values=1e-6, num_classes=0)
        self.attn_pool_contrast = AttentionPool()
        self.ln_contrast = nn.LayerNorm(_WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images."""
        tokens = self.trunk.forward_features(images)
        if self.spatial:
            return tokens[:, 1:].unflatten(1, (_GRID, _GRID))
        return self.ln_contrast(self.attn_pool_contrast(tokens))


def resample_positions(positions: Tensor) -> Tensor:
    """Position embeddings ``[1, 1 + g*g, d]`` on the 28 x 28 grid, interpolated as the authors' code does.

    That code follows DINO: bicubic with the scale of a grid 0.1 larger, which shifts the sampling points a little.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if side == _GRID:
        return positions
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    resampled = F.interpolate(grid, scale_factor=(_GRID + 0.1) / side, mode="bicubic")
    return torch.cat([positions[:, :1], resampled.flatten(2).transpose(1, 2)], dim=1)
