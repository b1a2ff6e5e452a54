"""R2T: tiles re-embedded by a regional transformer before they are pooled (Tang et al., CVPR 2024)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.networks.blocks import BagByBagNetwork
from monai_mil.networks.contract import MILNetwork, exact_matmul


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
    of a bag of ``n`` tiles hold ``heads n^2 / R^2`` scores at once.

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
        rows = self._embedded(image)
        scores = exact_matmul(F.relu(self.gates(rows)), self.score.weight.T).transpose(1, 2)
        return exact_matmul(torch.softmax(scores, dim=2), rows)[:, 0], scores

    def _embedded(self, image: Tensor) -> Tensor:
        """The re-embedded tiles ``[b, n, i]``."""
        rows = F.relu(self.hidden(image.transpose(1, 2).to(self.hidden.weight.dtype)))
        rows = F.dropout(rows, self.dropout, self.training)
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
        lowest, highest = evidence.amin(dim=2, keepdim=True), evidence.amax(dim=2, keepdim=True)
        shares = torch.softmax(evidence, dim=3) * (evidence - lowest) / (highest - lowest + 1e-8)
        gathered = exact_matmul(torch.softmax(evidence, dim=2).transpose(2, 3), regions)  # [b, regions, k, i]
        asked = gathered.transpose(1, 2).to(rows.dtype)
        answers = self.attend(asked.flatten(0, 1)).reshape_as(asked).transpose(1, 2)
        spread = exact_matmul(shares, answers).to(rows.dtype)
        return spread.flatten(1, 2).index_select(1, place)


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
        return F.dropout(self.output(merged.to(self.output.weight.dtype)), self.dropout, self.training)


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
