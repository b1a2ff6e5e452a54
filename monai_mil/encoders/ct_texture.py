"""The encoder of CT slices that needs no download: a fixed bank of derivative and blob filters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_mil.encoders.card import IMAGENET_MEAN, IMAGENET_STD
from monai_mil.encoders.filters import halve, pool_cells, smooth

CT_TEXTURE_VERSION = "ct_texture/1"
"""Changes whenever the numbers change; the digest of the encoder is made of it."""

CT_TOKEN_GRID = 14
CT_TOKEN_WIDTH = 42
CT_WIDTH = 112

_LEVELS = 4
_COARSE = 4
_WIDTHS = (3, 4, 5, 6, 8, 11)
_RING_GAP, _RING_WIDTH = 2, 4
_BODY_FLOOR = 0.2
_BODY_WINDOWS = (0, 2)
_ENERGY_FLOOR = 1e-5
_VARIANCE_FLOOR = 1e-4
_LARGEST = 8.0

# Measured on CT, half synthetic and half real (LIDC chest, a GE head, a TotalSegmentator abdomen), in the windows of
# "chest_rsna". The spread of bodies is fixed, so that the brightest stay within the limits.
_MEAN = (
    *(0.47, 0.13, 0.15, -6.14, -6.54, -6.36, -6.98, -7.69, -7.47, -8.08, -8.49, -8.25, -6.69, -7.44),
    *(-7.25, -7.82, -8.33, -8.11, -6.10, -6.95, -6.77, -7.28, -7.90, -7.70, -5.26, -6.25, -6.08, -6.42),
    *(-7.18, -6.99, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00),
)
_SPREAD = (
    *(0.27, 0.18, 0.21, 2.64, 2.65, 2.82, 3.21, 3.51, 3.69, 2.59, 2.82, 3.01, 3.39, 3.61),
    *(3.77, 2.79, 2.87, 3.04, 3.41, 3.64, 3.79, 2.87, 2.90, 3.07, 3.25, 3.48, 3.60, 2.85),
    *(2.87, 3.01, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08, 0.08),
)
_POOLED_MEAN = (
    *(-0.01, -0.00, -0.02, -0.00, -0.00, 0.00, 0.00, 0.00, -0.00, 0.00, 0.00, -0.00, 0.00, -0.00),
    *(-0.00, 0.00, 0.00, 0.00, -0.00, -0.00, -0.00, 0.00, -0.00, 0.00, -0.00, -0.00, -0.00, 0.00),
    *(0.00, -0.00, 0.12, 0.06, 0.02, 0.02, 0.01, 0.00, 0.41, 0.28, 0.13, 0.10, 0.04, 0.01),
    *(1.00, 0.96, 0.96, 0.99, 1.00, 0.99, 0.99, 0.99, 0.99, 0.98, 0.99, 0.99, 0.99, 0.99),
    *(0.99, 0.99, 0.99, 0.99, 0.99, 1.00, 0.99, 0.99, 0.99, 1.00, 0.98, 0.99, 1.00, 0.98),
    *(0.99, 0.99, 0.35, 0.19, 0.09, 0.09, 0.06, 0.02, 0.92, 0.74, 0.45, 0.36, 0.22, 0.10),
    *(2.21, 1.45, 0.84, 0.87, 0.67, 0.27, 4.08, 3.77, 2.93, 2.58, 1.86, 1.08, 0.38, 0.38),
    *(0.38, 0.38, 0.38, 0.38, 0.38, 0.38, 0.38, 0.38, 0.38, 0.38, 0.38, 0.38, 0.38, 0.38),
)
_POOLED_SPREAD = (
    *(0.12, 0.17, 0.17, 0.16, 0.12, 0.13, 0.17, 0.13, 0.13, 0.20, 0.16, 0.16, 0.15, 0.12),
    *(0.12, 0.17, 0.15, 0.15, 0.17, 0.11, 0.11, 0.17, 0.12, 0.12, 0.19, 0.13, 0.11, 0.21),
    *(0.14, 0.12, 0.08, 0.05, 0.05, 0.05, 0.05, 0.05, 0.12, 0.12, 0.08, 0.06, 0.05, 0.05),
    *(0.09, 0.16, 0.15, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.06, 0.06, 0.05, 0.05),
    *(0.05, 0.05, 0.05, 0.05, 0.05, 0.06, 0.06, 0.05, 0.05, 0.05, 0.05, 0.06, 0.06, 0.05),
    *(0.08, 0.08, 0.18, 0.09, 0.07, 0.07, 0.05, 0.05, 0.19, 0.25, 0.19, 0.16, 0.12, 0.10),
    *(0.85, 0.82, 0.79, 0.74, 0.62, 0.42, 0.76, 0.95, 1.01, 0.98, 0.97, 1.13, 0.44, 0.44),
    *(0.44, 0.44, 0.44, 0.44, 0.44, 0.44, 0.44, 0.44, 0.44, 0.44, 0.44, 0.44, 0.44, 0.44),
)


class CTTextureBank(nn.Module):
    """Local density, texture and bodies of a slice on a 14 x 14 token grid; no weights, no randomness.

    Per token: mean and log variance of the three windows; on four octaves of each (1.6 to 12.5 mm a pixel for a field
    of view of 350 mm) the log energy of gradient and Laplacian; and for six widths from 5 to 17 mm how much a body of
    that width stands out from its surroundings, in the first and the last window: nodules have it, vessels, organs and
    the chest wall hardly.

    The pooled vector is the mean over tokens and their spread, the strongest body of every width in the whole slice,
    and the strongest of 6 to 10 mm on a 4 x 4 lattice, so that something small is not averaged away. Constants
    standardise all of it: CT gives values around 0 with a spread around 1, and nothing exceeds 8 in size.

    Args:
        spatial: give the token map, not the pooled vector.
    """

    def __init__(self, spatial: bool) -> None:
        super().__init__()
        self.spatial = spatial
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))
        self.register_buffer("centre", torch.tensor(_MEAN).view(-1, 1, 1))
        self.register_buffer("scale", 1 / torch.tensor(_SPREAD).view(-1, 1, 1))
        self.register_buffer("pooled_centre", torch.tensor(_POOLED_MEAN))
        self.register_buffer("pooled_scale", 1 / torch.tensor(_POOLED_SPREAD))

    mean: Tensor
    std: Tensor
    centre: Tensor
    scale: Tensor
    pooled_centre: Tensor
    pooled_scale: Tensor

    def forward(self, slices: Tensor) -> Tensor:
        """Features of slices ``[b, 3, 224, 224]``: float32 ``[b, 112]``, spatial ``[b, 14, 14, 42]``.

        Slices are as ``prepare_slices`` makes them from a preset of three windows in ImageNet's statistics.
        """
        raw = self._raw_tokens(slices)
        tokens = ((raw - self.centre) * self.scale).clamp_(-_LARGEST, _LARGEST)
        if self.spatial:
            return tokens.permute(0, 2, 3, 1)
        pooled = (self._raw_pooled(tokens) - self.pooled_centre) * self.pooled_scale
        return pooled.clamp_(-_LARGEST, _LARGEST)

    def _raw_tokens(self, slices: Tensor) -> Tensor:
        """Features before standardising, ``[b, 42, 14, 14]``; the last 12 are the bodies, window by window."""
        grey = slices * self.std + self.mean
        mean = pool_cells(grey, CT_TOKEN_GRID)
        variance = (pool_cells(grey * grey, CT_TOKEN_GRID) - mean * mean).clamp_min_(0)
        features = [mean, torch.log(variance + _VARIANCE_FLOOR)]
        fine = field = smooth(grey)
        for level in range(_LEVELS):
            field = smooth(halve(field)) if level else field
            features += _derivatives(field)
        features += [_bodies(fine[:, window]) for window in _BODY_WINDOWS]
        return torch.cat(features, dim=1)

    def _raw_pooled(self, tokens: Tensor) -> Tensor:
        """Mean, spread, strongest bodies and where they are, ``[b, 112]``."""
        spread, mean = torch.std_mean(tokens, dim=(2, 3))
        bodies = tokens[:, -len(_WIDTHS) * len(_BODY_WINDOWS) :]
        strongest = bodies.amax(dim=(2, 3))
        places = F.adaptive_max_pool2d(bodies[:, 1:4].amax(1, keepdim=True), _COARSE)
        return torch.cat([mean, spread, strongest, places.flatten(1)], dim=1)


def _derivatives(field: Tensor) -> list[Tensor]:
    """Log energy of gradient and Laplacian of ``[b, c, h, w]``, each ``[b, c, 14, 14]``."""
    padded = F.pad(field, (1, 1, 1, 1), mode="replicate")
    left, right = padded[:, :, 1:-1, :-2], padded[:, :, 1:-1, 2:]
    above, below = padded[:, :, :-2, 1:-1], padded[:, :, 2:, 1:-1]
    dx, dy = right - left, below - above
    gradient = pool_cells(dx.square_().add_(dy.square_()), CT_TOKEN_GRID)
    laplacian = pool_cells((right + left + above + below).sub_(field, alpha=4).square_(), CT_TOKEN_GRID)
    return [torch.log(gradient + _ENERGY_FLOOR), torch.log(laplacian + _ENERGY_FLOOR)]


def _bodies(grey: Tensor) -> Tensor:
    """How much a core stands out from the ring around it, by width: ``[b, 224, 224]`` to ``[b, 6, 14, 14]``.

    The darkest pixel of a square core minus the mean of a ring around it, the strongest within each token. A body as
    wide as the core has it; a vessel is too narrow for the core, and an organ or the chest wall fills half of the ring.
    """
    sums = F.pad(grey, (1, 0, 1, 0)).cumsum(1).cumsum(2)
    core, bodies = grey, []
    for width in range(2, _WIDTHS[-1] + 1):
        core = _erode(core, width)
        if width in _WIDTHS:
            inner = width // 2 + _RING_GAP
            bodies.append(_cell_max(core - _ring_mean(sums, inner, inner + _RING_WIDTH)))
    return torch.stack(bodies, dim=1).sub_(_BODY_FLOOR).clamp_min_(0)


def _erode(core: Tensor, width: int) -> Tensor:
    """Minimum over squares of ``width`` from those one px smaller; they stay centred to half a px."""
    before, after = (1, 0) if width % 2 else (0, 1)
    padded = F.pad(core[:, None], (before, after, before, after), mode="replicate")[:, 0]
    rows = torch.minimum(padded[:, :-1], padded[:, 1:])
    return torch.minimum(rows[..., :-1], rows[..., 1:])


def _ring_mean(sums: Tensor, inner: int, outer: int) -> Tensor:
    """Mean of the square ring between two half widths around every pixel; 1, as bright as can be, near the border."""
    side = sums.shape[-1] - 1
    mean = torch.ones(len(sums), side, side, device=sums.device)
    area = (2 * outer + 1) ** 2 - (2 * inner + 1) ** 2
    big, small = _box_sum(sums, outer), _box_sum(sums, inner)
    margin = outer - inner
    mean[:, outer:-outer, outer:-outer] = (big - small[:, margin:-margin, margin:-margin]) / area
    return mean


def _box_sum(sums: Tensor, half: int) -> Tensor:
    """Sum over squares that lie within the slice, from sums over rows and columns."""
    width = 2 * half + 1
    return sums[:, width:, width:] - sums[:, :-width, width:] - sums[:, width:, :-width] + sums[:, :-width, :-width]


def _cell_max(field: Tensor) -> Tensor:
    b, h, w = field.shape
    rows = field.view(b, CT_TOKEN_GRID, h // CT_TOKEN_GRID, w).amax(2)
    return rows.view(b, CT_TOKEN_GRID, CT_TOKEN_GRID, w // CT_TOKEN_GRID).amax(3)
