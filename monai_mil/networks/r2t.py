"""R2T: tiles re-embedded by a regional transformer before they are pooled (Tang et al., CVPR 2024)."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import BagByBagNetwork, RunningPool, dropped, is_long
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul
from monai_mil.networks.graph import is_recorded

HELD_SCORES = 1 << 26
"""Scores of regions, of all heads, up to which evaluation works on all regions at once."""

SCORES_AT_ONCE = 1 << 23
"""Scores of one region, of all heads, that are held where regions come one by one."""


class R2T(BagByBagNetwork):
    """Attention within square regions of tiles, then among the regions, and attention pooling of what comes out.

    ``h_i = relu(W x_i + b)``. The tiles are laid out as a square in the order of the bag, filled up with zeros to
    ``R s`` tiles a side, and cut into ``R^2`` regions of ``s^2`` tiles.

    Regional layers (R-MSA): ``h = h + P(softmax(E + pe(E)) V)``, ``E = Q K^T / sqrt(i / heads)`` of the region's
    normalised tiles, where ``pe`` is a convolution of each head's ``E`` along its queries, ``kernel`` wide (EPEG).

    One layer across (CR-MSA), of normalised tiles ``u``: ``g = u Phi``, ``k`` numbers a tile; each region has ``k``
    representatives ``sum_p softmax_p(g_p) u_p``, which attend to those of the other regions; what tile ``p`` takes of
    its region's answers ``r`` is added to ``h``: ``sum_k softmax_k(g_pk) c_pk r_k`` with
    ``c_pk = (g_pk - min_p g_pk) / (max_p g_pk - min_p g_pk)``.

    Then ``f = LN(h)``, ``s_i = w^T relu(V f_i)``, ``a = softmax(s)``, ``z = sum_i a_i f_i`` and ``logits = C z + c``.
    The order of the tiles matters.

    The output holds ``logits``, ``attention``, ``attention_logits`` and ``bag`` ``[b, hidden_dim]``. A tile's score is
    its attention.

    As in the authors' program zeros that fill the square are seen by the attention of their region, and a region of a
    single tile (bags of at most ``R^2``) has nothing to take from the layer across. A bag is worked on whole; regions
    of a bag of ``n`` tiles have ``heads n^2 / R^2`` scores. Evaluation goes region by region where those are many
    (:data:`HELD_SCORES`), and through each twice where the tiles themselves are too many to be kept.

    Args:
        in_channels: ``d``, width of an instance's features.
        num_classes: ``c``.
        hidden_dim: ``i``, width of a tile's embedding.
        heads: of all layers, a divisor of ``hidden_dim``.
        layers: regional ones.
        regions: ``R``, a side.
        kernel: of ``pe``, odd.
        representatives: ``k``.
        attention_dim: rows of ``V``.
        shortcut: add ``relu(W x_i + b)`` to what is normalised at the end, as the paper does for CAMELYON16.
        dropout: of ``h`` in training.
        layer_dropout: on the result of every layer in training.

    Raises:
        ValueError: ``heads`` does not divide ``hidden_dim``, or ``kernel`` is even.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import R2T
        >>> network = R2T(in_channels=16, num_classes=2, hidden_dim=32, heads=4, regions=2).eval()
        >>> output = network(torch.randn(1, 16, 100), return_dict=True)  # four regions of 5 x 5 tiles
        >>> list(output["attention"].shape)
        [1, 1, 100]
    """

    score_parameters = ("hidden", "regional", "across", "norm", "gates", "score")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 512,
        heads: int = 8,
        layers: int = 1,
        regions: int = 8,
        kernel: int = 15,
        representatives: int = 3,
        attention_dim: int = 128,
        shortcut: bool = False,
        dropout: float = 0.25,
        layer_dropout: float = 0.1,
    ) -> None:
        super().__init__(num_classes)
        if hidden_dim % heads:
            raise ValueError(f"{heads} heads do not divide hidden_dim {hidden_dim}")
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel}: give an odd number, so that a query keeps its place")
        self.regions = regions
        self.shortcut = shortcut
        self.dropout = dropout
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.regional = nn.ModuleList([_RegionalLayer(hidden_dim, heads, kernel, layer_dropout) for _ in range(layers)])
        self.across = _CrossRegionLayer(hidden_dim, heads, representatives, layer_dropout)
        self.norm = nn.LayerNorm(hidden_dim)
        self.gates = nn.Linear(hidden_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1, bias=False)
        self.classifier = nn.Linear(hidden_dim, num_classes)

    def _bag_and_scores(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if torch.jit.is_scripting() or is_recorded() or torch.is_grad_enabled() or self.training:
            return self._held(image)
        return self._region_by_region(image) if self._has_many_scores(image) else self._held(image)

    @torch.jit.unused
    def _has_many_scores(self, image: Tensor) -> bool:
        return len(image) * self.across.attend.heads * (image.shape[2] / self.regions) ** 2 > HELD_SCORES

    @torch.jit.unused
    def _region_by_region(self, image: Tensor) -> tuple[Tensor, Tensor]:
        bags, scores = zip(*(self._stream(rows, is_long(image)) for rows in image.mT), strict=True)
        return torch.stack(bags), torch.stack(scores)

    @torch.jit.unused
    def _stream(self, rows: Tensor, again: bool) -> tuple[Tensor, Tensor]:
        """The bag ``[i]`` and the scores ``[1, n]`` of tiles ``[n, d]``; regions are made twice, or kept."""
        taken, filled, _ = region_places(rows[None], self.regions)
        kept: list[tuple[Tensor, Tensor] | None] = []
        gathered: list[Tensor] = []
        for tiles, holes in zip(taken, filled, strict=True):
            region = self._region(rows[tiles], holes)
            gathered.append(self.across.gather(region[1], holes))
            kept.append(None if again else region)
        answers = self.across.exchange(torch.stack(gathered)[None])[0]
        weight = self.norm.weight
        pool = RunningPool(1, len(weight), exact_dtype(weight.dtype), weight.device)
        scores = pool.seen.new_empty(1, len(rows))
        for tiles, holes, held, answer in zip(taken, filled, kept, answers, strict=True):
            entered, embedded = self._region(rows[tiles], holes) if held is None else held
            embedded = embedded + self.across.spread(embedded, holes, answer)
            normed = self.norm(embedded + entered if self.shortcut else embedded)[~holes]
            found = exact_matmul(F.relu(self.gates(normed)), self.score.weight.T).T
            scores[:, tiles[~holes]] = found
            if len(normed):
                pool.add(found, normed)
        return pool.result()[0][0], scores

    @torch.jit.unused
    def _region(self, features: Tensor, holes: Tensor) -> tuple[Tensor, Tensor]:
        """``relu(W x + b)`` and what the regional layers make of it, ``[p, i]`` each, of one region's places."""
        entered = F.relu(self.hidden(features.to(self.hidden.weight.dtype)))
        embedded = entered
        for layer in cast("list[_RegionalLayer]", self.regional):
            normed = layer.norm(embedded).masked_fill(holes[:, None], 0.0)
            embedded = embedded + layer.attend.in_parts(normed)
        return entered, embedded

    def _held(self, image: Tensor) -> tuple[Tensor, Tensor]:
        rows = self._embedded(image)
        scores = exact_matmul(F.relu(self.gates(rows)), self.score.weight.T).transpose(1, 2)
        return exact_matmul(torch.softmax(scores, dim=2), rows)[:, 0], scores

    def _embedded(self, image: Tensor) -> Tensor:
        """The re-embedded tiles ``[b, n, i]``."""
        rows = F.relu(self.hidden(image.transpose(1, 2).to(self.hidden.weight.dtype)))
        rows = dropped(rows, self.dropout, self.training)
        taken, filled, place = region_places(rows, self.regions)
        embedded = rows
        for layer in self.regional:
            embedded = embedded + layer(embedded, taken, filled, place)
        embedded = embedded + self.across(embedded, taken, filled, place)
        return self.norm(embedded + rows if self.shortcut else embedded)

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d]`` of one of its instances, for the contract's tests."""
        return R2T(12, 3, hidden_dim=8, heads=2, regions=4, kernel=3, representatives=2, attention_dim=4), (12,)


class _RegionalLayer(nn.Module):
    """Attention of the tiles of each region to each other; see :class:`R2T`."""

    def __init__(self, channels: int, heads: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.attend = _SelfAttention(channels, heads, kernel, dropout)

    def forward(self, rows: Tensor, taken: Tensor, filled: Tensor, place: Tensor) -> Tensor:
        """``[b, n, i]`` to the same; the rest is of :func:`region_places`."""
        regions = cut_into_regions(self.norm(rows), taken, filled)
        answers = self.attend(regions.flatten(0, 1)).reshape_as(regions)
        return answers.flatten(1, 2).index_select(1, place)


class _CrossRegionLayer(nn.Module):
    """Attention of the regions' representatives to each other; see :class:`R2T`."""

    def __init__(self, channels: int, heads: int, representatives: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.phi = nn.Parameter(torch.empty(channels, representatives))
        nn.init.kaiming_uniform_(self.phi, a=math.sqrt(5))
        self.attend = _SelfAttention(channels, heads, 0, dropout)

    def forward(self, rows: Tensor, taken: Tensor, filled: Tensor, place: Tensor) -> Tensor:
        """``[b, n, i]`` to the same; the rest is of :func:`region_places`."""
        regions = cut_into_regions(self.norm(rows), taken, filled)
        evidence = exact_matmul(regions, self.phi)  # [b, regions, tiles, k]
        gathered = exact_matmul(torch.softmax(evidence, dim=2).transpose(2, 3), regions)  # [b, regions, k, i]
        answers = self.exchange(gathered.to(rows.dtype))
        spread = exact_matmul(self._shares(evidence), answers).to(rows.dtype)
        return spread.flatten(1, 2).index_select(1, place)

    def exchange(self, gathered: Tensor) -> Tensor:
        """The representatives' answers to each other, ``[b, regions, k, i]`` to the same."""
        asked = gathered.transpose(1, 2).to(self.phi.dtype)
        return self.attend(asked.flatten(0, 1)).reshape_as(asked).transpose(1, 2)

    @torch.jit.unused
    def gather(self, embedded: Tensor, holes: Tensor) -> Tensor:
        """The representatives ``[k, i]`` of one region ``[p, i]``."""
        region = self.norm(embedded).masked_fill(holes[:, None], 0.0)
        return exact_matmul(torch.softmax(exact_matmul(region, self.phi), dim=0).T, region)

    @torch.jit.unused
    def spread(self, embedded: Tensor, holes: Tensor, answers: Tensor) -> Tensor:
        """What the places of one region take of its answers ``[k, i]``, ``[p, i]``."""
        evidence = exact_matmul(self.norm(embedded).masked_fill(holes[:, None], 0.0), self.phi)
        return exact_matmul(self._shares(evidence[None, None])[0, 0], answers).to(embedded.dtype)

    def _shares(self, evidence: Tensor) -> Tensor:
        """What each place takes of its region's answers, ``[b, regions, tiles, k]``."""
        lowest, highest = evidence.amin(dim=2, keepdim=True), evidence.amax(dim=2, keepdim=True)
        return torch.softmax(evidence, dim=3) * (evidence - lowest) / (highest - lowest + 1e-8)


class _SelfAttention(nn.Module):
    """Multi-head attention of rows ``[m, p, i]`` to each other, with a convolution of its scores along the queries."""

    def __init__(self, channels: int, heads: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.project = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)
        around = (kernel // 2, 0)
        self.positions = nn.Conv2d(heads, heads, (kernel, 1), padding=around, groups=heads) if kernel else None

    def forward(self, rows: Tensor) -> Tensor:
        """``[m, p, i]`` to the same."""
        parts = self.project(rows).unflatten(2, [3, self.heads, -1]).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        scores = exact_matmul(query * query.shape[3] ** -0.5, key.transpose(2, 3))
        if self.positions is not None:
            scores = scores + self.positions(scores.to(self.positions.weight.dtype))
        merged = exact_matmul(torch.softmax(scores, dim=3), value).transpose(1, 2).flatten(2)
        return dropped(self.output(merged.to(self.output.weight.dtype)), self.dropout, self.training)

    @torch.jit.unused
    def in_parts(self, rows: Tensor) -> Tensor:
        """The same of ``[p, i]``, without gradients, some queries at once and what the convolution sees around them."""
        query, key, value = self.project(rows).unflatten(1, [3, self.heads, -1]).permute(1, 2, 0, 3)
        query, merged = query * query.shape[2] ** -0.5, torch.empty_like(query)
        positions, count = self.positions, len(rows)
        reach = 0 if positions is None else positions.weight.shape[2] // 2
        step = max(1, SCORES_AT_ONCE // (self.heads * count))
        for start in range(0, count, step):
            stop = min(start + step, count)
            first, last = max(0, start - reach), min(count, stop + reach)
            scores = exact_matmul(query[:, first:last], key.transpose(1, 2))
            if positions is not None:
                around = F.pad(scores, [0, 0, reach - (start - first), reach - (last - stop)])
                around = around.to(positions.weight.dtype)
                scores = scores[:, start - first : stop - first]
                scores = scores + F.conv2d(around, positions.weight, positions.bias, groups=self.heads)
            merged[:, start:stop] = exact_matmul(torch.softmax(scores, dim=2), value)
        return self.output(merged.transpose(0, 1).flatten(1))


def cut_into_regions(rows: Tensor, taken: Tensor, filled: Tensor) -> Tensor:
    """Rows ``[b, n, i]`` as regions ``[b, R^2, s^2, i]``, 0 where the square is filled; see :func:`region_places`."""
    cut = rows.index_select(1, taken.flatten()).unflatten(1, [taken.shape[0], -1])
    return cut.masked_fill(filled[None, :, :, None], 0.0)


def region_places(rows: Tensor, regions: int) -> tuple[Tensor, Tensor, Tensor]:
    """How a bag is cut into regions, and put together again.

    Args:
        rows: ``[b, n, i]``.
        regions: ``R``, a side.

    Returns:
        The tile at each place of each region ``[R^2, s^2]``, where it is none but fills the square, likewise, and the
        place of each tile among all regions' places, ``[n]``.
    """
    side = region_side(rows.shape[1], regions)
    within = torch.arange(side * side, device=rows.device)
    region = torch.arange(regions * regions, device=rows.device)[:, None]
    row = region // regions * side + within // side
    column = region % regions * side + within % side
    tile = row * (side * regions) + column
    own = torch.ones_like(rows[0, :, 0], dtype=torch.long).cumsum(0) - 1
    count = own[-1] + 1
    row, column = own // (side * regions), own % (side * regions)
    place = (row // side * regions + column // side) * (side * side) + row % side * side + column % side
    return tile % count, tile >= count, place


def region_side(count: int, regions: int) -> int:
    """``s``, so that ``R s`` tiles a side hold ``count`` tiles; what is exported computes it from its own bag."""
    if torch.jit.is_scripting():
        return math.ceil(math.ceil(math.sqrt(count)) / regions)
    if torch.jit.is_tracing():
        side = torch.as_tensor(count).double().sqrt().ceil()
        return (side / regions).ceil().long()  # type: ignore[return-value]
    if torch.compiler.is_exporting():
        side = torch.scalar_tensor(count, dtype=torch.double).sqrt().ceil()
        found: int = (side / regions).ceil().long().item()  # type: ignore[assignment]
        torch._check(found >= 1)
        return found
    return math.ceil(math.ceil(torch.sym_sqrt(count)) / regions)
