"""The encoder of CT slices that needs no download: a fixed bank of derivative and blob filters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_mil.encoders.ct_texture_designs import CTTextureDesign
from monai_mil.encoders.filters import halve, pool_cells, smooth

_LEVELS = 4
_COARSE = 4
_BODY_FLOOR = 0.2
_BODY_WINDOWS = (0, 2)
_ENERGY_FLOOR = 1e-5
_VARIANCE_FLOOR = 1e-4
_LARGEST = 8.0


class CTTextureBank(nn.Module):
    """Local density, texture and bodies of a slice on a grid of tokens; no weights, no randomness.

    Per token: mean and log variance of the three windows; on four octaves of each (1.6 to 12.5 mm a pixel for a field
    of view of 350 mm) the log energy of gradient and Laplacian; and for six widths from 5 to 17 mm how much a body of
    that width stands out from its surroundings, in the first and the last window: nodules have it, vessels, organs and
    the chest wall hardly.

    The pooled vector is the mean over tokens and their spread, the strongest body of every width in the whole slice,
    and the strongest of 6 to 10 mm on a 4 x 4 lattice, so that something small is not averaged away. Constants
    standardise all of it: CT gives values around 0 with a spread around 1, and nothing exceeds 8 in size.

    Args:
        design: sizes and constants.
        spatial: give the token map, not the pooled vector.
    """

    def __init__(self, design: CTTextureDesign, spatial: bool) -> None:
        super().__init__()
        self.design = design
        self.spatial = spatial
        for name, values in (("mean", design.grey_mean), ("std", design.grey_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))
        self.register_buffer("centre", torch.tensor(design.mean).view(-1, 1, 1))
        self.register_buffer("scale", 1 / torch.tensor(design.spread).view(-1, 1, 1))
        self.register_buffer("pooled_centre", torch.tensor(design.pooled_mean))
        self.register_buffer("pooled_scale", 1 / torch.tensor(design.pooled_spread))

    mean: Tensor
    std: Tensor
    centre: Tensor
    scale: Tensor
    pooled_centre: Tensor
    pooled_scale: Tensor

    def forward(self, slices: Tensor) -> Tensor:
        """Features of slices ``[b, 3, s, s]``: float32 ``[b, 112]``, spatial ``[b, grid, grid, 42]``.

        Slices are as ``prepare_slices`` makes them from a preset with the design's statistics: of three windows, or of
        one where the design looks through windows of its own.
        """
        raw = self._raw_tokens(slices)
        tokens = ((raw - self.centre) * self.scale).clamp_(-_LARGEST, _LARGEST)
        if self.spatial:
            return tokens.permute(0, 2, 3, 1)
        pooled = (self._raw_pooled(tokens) - self.pooled_centre) * self.pooled_scale
        return pooled.clamp_(-_LARGEST, _LARGEST)

    def _raw_tokens(self, slices: Tensor) -> Tensor:
        """Features before standardising, ``[b, 42, grid, grid]``; the last 12 are the bodies, window by window."""
        design = self.design
        grey = self._grey(slices)
        mean = pool_cells(grey, design.grid)
        variance = (pool_cells(grey * grey, design.grid) - mean * mean).clamp_min_(0)
        features = [mean, torch.log(variance + _VARIANCE_FLOOR)]
        fine = field = smooth(grey)
        for level in range(_LEVELS):
            field = smooth(halve(field)) if level else field
            features += _derivatives(field, design.grid)
        features += [_bodies(fine[:, window], design) for window in _BODY_WINDOWS]
        return torch.cat(features, dim=1)

    def _grey(self, slices: Tensor) -> Tensor:
        """Three windows in 0 to 1, ``[b, 3, side, side]``."""
        grey = slices * self.std + self.mean
        if self.design.windows is not None:
            windows = [(grey[:, 0] - low) / (high - low) for low, high in self.design.windows]
            grey = torch.stack(windows, dim=1).clamp_(0, 1)
        side = self.design.side
        if grey.shape[-1] == side:
            return grey
        return F.interpolate(grey, size=(side, side), mode="bilinear", antialias=True)

    def _raw_pooled(self, tokens: Tensor) -> Tensor:
        """Mean, spread, strongest bodies and where they are, ``[b, 112]``."""
        spread, mean = torch.std_mean(tokens, dim=(2, 3))
        bodies = tokens[:, -len(self.design.widths) * len(_BODY_WINDOWS) :]
        strongest = bodies.amax(dim=(2, 3))
        places = F.adaptive_max_pool2d(bodies[:, 1:4].amax(1, keepdim=True), _COARSE)
        return torch.cat([mean, spread, strongest, places.flatten(1)], dim=1)


def _derivatives(field: Tensor, grid: int) -> list[Tensor]:
    """Log energy of gradient and Laplacian of ``[b, c, h, w]``, each ``[b, c, grid, grid]``."""
    padded = F.pad(field, (1, 1, 1, 1), mode="replicate")
    left, right = padded[:, :, 1:-1, :-2], padded[:, :, 1:-1, 2:]
    above, below = padded[:, :, :-2, 1:-1], padded[:, :, 2:, 1:-1]
    dx, dy = right - left, below - above
    gradient = pool_cells(dx.square_().add_(dy.square_()), grid)
    laplacian = pool_cells((right + left + above + below).sub_(field, alpha=4).square_(), grid)
    return [torch.log(gradient + _ENERGY_FLOOR), torch.log(laplacian + _ENERGY_FLOOR)]


def _bodies(grey: Tensor, design: CTTextureDesign) -> Tensor:
    """How much a core stands out from the ring around it, by width: ``[b, s, s]`` to ``[b, 6, grid, grid]``.

    The darkest pixel of a square core minus the mean of a ring around it, the strongest within each token. A body as
    wide as the core has it; a vessel is too narrow for the core, and an organ or the chest wall fills half of the ring.
    """
    sums = F.pad(grey, (1, 0, 1, 0)).cumsum(1).cumsum(2)
    gap, ring = design.ring
    core, bodies = grey, []
    for width in range(2, design.widths[-1] + 1):
        core = _erode(core, width)
        if width in design.widths:
            inner = width // 2 + gap
            bodies.append(_cell_max(core - _ring_mean(sums, inner, inner + ring), design.grid))
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


def _cell_max(field: Tensor, grid: int) -> Tensor:
    b, h, w = field.shape
    rows = field.view(b, grid, h // grid, w).amax(2)
    return rows.view(b, grid, grid, w // grid).amax(3)
