"""The encoder that needs no download: a fixed bank of derivative filters on stain-separated tiles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_mil.encoders.filters import halve, pool_cells, smooth

TEXTURE_VERSION = "texture/1"
"""Changes whenever the numbers change; the digest of the encoder is made of it."""

TOKEN_GRID = 14
TOKEN_WIDTH = 38

_LEVELS = 4
_ENERGY_FLOOR = 1e-5
_VARIANCE_FLOOR = 1e-4
_LARGEST = 8.0

# Optical density of pure haematoxylin and eosin (Ruifrok and Johnston 2001); the third row is what neither explains.
_HAEMATOXYLIN = (0.650, 0.704, 0.286)
_EOSIN = (0.072, 0.990, 0.105)

# Mean and spread of each feature over H&E tissue, background included (CAMELYON16 and Aperio CMU-1, 256 px at 0.5 um):
# the mean and log variance of three stains, then per octave gradient, coherence, Laplacian, line share of H and E.
_MEAN = (
    *(0.32, 0.13, 0.09, -4.25, -6.16, -6.64),
    *(-4.57, -6.64, 0.40, 0.34, -6.00, -7.84, 0.30, 0.28),
    *(-4.46, -6.63, 0.46, 0.44, -5.60, -7.79, 0.30, 0.29),
    *(-4.61, -6.69, 0.55, 0.56, -5.56, -7.72, 0.31, 0.30),
    *(-5.00, -7.06, 0.72, 0.70, -5.83, -7.90, 0.33, 0.32),
)
_SPREAD = (
    *(0.22, 0.08, 0.06, 2.08, 1.58, 1.34),
    *(2.48, 2.00, 0.23, 0.21, 2.14, 1.96, 0.09, 0.09),
    *(2.54, 1.93, 0.24, 0.24, 2.26, 1.71, 0.11, 0.10),
    *(2.52, 1.92, 0.26, 0.27, 2.30, 1.71, 0.14, 0.14),
    *(2.34, 1.85, 0.27, 0.28, 2.18, 1.67, 0.21, 0.21),
)


class TextureBank(nn.Module):
    """Local texture and stain of a tile on a 14 x 14 token grid; no weights, no randomness.

    Optical density is unmixed into haematoxylin, eosin and residual. On four octaves of the first two (0.6 to 4.6 um
    a pixel for tiles of 128 um) first and second derivatives give, per token: the log energy of the gradient, the
    coherence of its direction (structure tensor: fibres against speckle), the log energy of the Laplacian (blobs such
    as nuclei) and the share of line-like curvature. The mean and the log variance of the three stains complete the
    ``TOKEN_WIDTH`` features. Constants standardise them: H&E gives values around 0 with a spread around 1, and
    nothing exceeds 8 in size.

    Args:
        spatial: give the token map, not the pooled vector (mean over tokens, then their spread).
    """

    unmix: Tensor
    density: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, spatial: bool) -> None:
        super().__init__()
        self.spatial = spatial
        self.register_buffer("unmix", _unmixing_matrix())
        self.register_buffer("density", -torch.log10((torch.arange(256, dtype=torch.float64) + 1) / 256).float())
        self.register_buffer("centre", torch.tensor(_MEAN).view(-1, 1, 1))
        self.register_buffer("scale", 1 / torch.tensor(_SPREAD).view(-1, 1, 1))

    def forward(self, tiles: Tensor) -> Tensor:
        """Features of uint8 tiles ``[b, 3, 224, 224]``: float32 ``[b, 76]``, spatial ``[b, 14, 14, 38]``."""
        stains = self._stains(tiles)
        features = _stain_moments(stains)
        field = stains[:, :2]
        for level in range(_LEVELS):
            field = smooth(halve(field) if level else field)
            features += _derivative_features(field)
        tokens = torch.cat(features, dim=1).sub_(self.centre).mul_(self.scale).clamp_(-_LARGEST, _LARGEST)
        if self.spatial:
            return tokens.permute(0, 2, 3, 1)
        spread, mean = torch.std_mean(tokens, dim=(2, 3))
        return torch.cat([mean, 2 * spread - 1.5], dim=1)

    def _stains(self, tiles: Tensor) -> Tensor:
        """Haematoxylin, eosin and residual density, float32 ``[b, 3, h, w]``."""
        density = torch.index_select(self.density, 0, tiles.contiguous().flatten().int())
        return torch.matmul(self.unmix, density.view(*tiles.shape[:2], -1)).view(tiles.shape)


def _unmixing_matrix() -> Tensor:
    stains = torch.tensor([_HAEMATOXYLIN, _EOSIN], dtype=torch.float64)
    stains = stains / stains.norm(dim=1, keepdim=True)
    residual = torch.linalg.cross(stains[0], stains[1])
    matrix = torch.cat([stains, (residual / residual.norm())[None]])
    return torch.linalg.inv(matrix).T.float().contiguous()


def _stain_moments(stains: Tensor) -> list[Tensor]:
    mean = pool_cells(stains, TOKEN_GRID)
    variance = (pool_cells(stains * stains, TOKEN_GRID) - mean * mean).clamp_min_(0)
    return [mean, torch.log(variance + _VARIANCE_FLOOR)]


def _derivative_features(field: Tensor) -> list[Tensor]:
    """Gradient energy, coherence, Laplacian energy and line share of ``[b, c, h, w]``, each ``[b, c, 14, 14]``."""
    padded = F.pad(field, (1, 1, 1, 1), mode="replicate")
    left, right = padded[:, :, 1:-1, :-2], padded[:, :, 1:-1, 2:]
    above, below = padded[:, :, :-2, 1:-1], padded[:, :, 2:, 1:-1]
    dx, dy = right - left, below - above
    xx, yy, xy = pool_cells(dx * dx, TOKEN_GRID), pool_cells(dy * dy, TOKEN_GRID), pool_cells(dx * dy, TOKEN_GRID)
    gradient = xx + yy + _ENERGY_FLOOR
    coherence = torch.sqrt((xx - yy).square() + 4 * xy.square()) / gradient
    across, along = torch.sub(right + left, field, alpha=2), torch.sub(above + below, field, alpha=2)
    blob = pool_cells((across + along).square_(), TOKEN_GRID) + _ENERGY_FLOOR
    line = pool_cells((across - along).square_(), TOKEN_GRID)
    return [torch.log(gradient), coherence, torch.log(blob), line / (line + blob)]
