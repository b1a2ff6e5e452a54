"""CAMIL: context-aware MIL with attention to a tile's neighbours (Fourkioti, De Vries and Bakal, ICLR 2024)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from monai_mil.networks.blocks import (
    BagByBagNetwork,
    GatedAttention,
    NystromAttention,
    Rows,
    RunningPool,
    is_long,
    touching_instances,
)
from monai_mil.networks.contract import MILNetwork, exact_dtype, exact_matmul
from monai_mil.networks.graph import is_recorded

STEP_TILES = 8192
"""Tiles of a long bag that are made at once."""

ASKING_TILES = 131_072
"""Tiles of a long bag whose queries meet the keys together: those of far neighbours are made anew for each so many."""


class CAMIL(BagByBagNetwork):
    """Every tile is seen by the whole slide (Nystroem attention) and weighed by the tiles around it.

    ``h_i = W x_i + b``; ``t = h + Nystroem(h)``. ``N_i`` are the tiles within one step of tile ``i`` in the grid;
    ``D_ij = |x_i - x_j|`` of their features; ``A_ij = exp(-D_ij / sqrt(sum_k D_ik^2))``; ``A_ii`` is the highest of
    them, or 1 for a tile that stands alone. ``w_i = sum_j A_ij (W_q t_i) . (W_k t_j) / sqrt(e)``;
    ``l_i = softmax(w)_i (W_v h_i + b_v)``; ``m_i = sigmoid(l_i) * l_i + (1 - sigmoid(l_i)) * t_i``. The bag is read by
    gated attention, ``a = softmax(v^T (tanh(V m_i) * sigmoid(U m_i)))``; ``z = sum_i a_i m_i``; ``logits = C z + c``.
    Where tiles overlap or slides lie on each other, the nearest eight are taken, earlier ones first.

    The image has two rows more than features: column and row of a tile in the grid, as
    ``monai_mil.bags.PositionsAsFeaturesd`` sets them behind the features. The order of the tiles matters to the
    Nystroem attention, as in TransMIL.

    Other than in the released program: it sees seven of the eight neighbours and takes features of 512 values as they
    are, without ``W``; its fusion weighs ``l`` by ``2 sigmoid(-l)^2`` and ``t`` by the rest, where the paper's gate is
    taken here. Neighbours are looked up in the cells of the grid; what is exported compares all pairs of tiles at once.
    Of a long bag evaluation keeps some 100 bytes a tile and makes each several times.

    The output holds ``logits``, ``bag`` ``[b, hidden_dim]``, and ``attention`` and ``attention_logits`` of the readout.

    Args:
        in_channels: ``d``, width of an instance's features, without the two positions.
        num_classes: ``c``.
        hidden_dim: width of ``h``, a multiple of ``heads``.
        attention_dim: rows of the readout's gates.
        neighbour_dim: ``e``, rows of ``W_q`` and ``W_k``.
        heads: of the Nystroem attention.
        landmarks: likewise.

    Raises:
        ValueError: ``heads`` does not divide ``hidden_dim``.

    Examples:
        >>> import torch
        >>> from monai_mil.networks import CAMIL
        >>> network = CAMIL(in_channels=16, num_classes=2, hidden_dim=32, heads=2, landmarks=8).eval()
        >>> places = torch.stack(torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")).flatten(1)
        >>> image = torch.cat([torch.randn(16, 100), places])[None]
        >>> list(network(image, return_dict=True)["attention"].shape)
        [1, 1, 100]
    """

    score_parameters = ("hidden", "context", "query", "key", "value", "attention")

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_dim: int = 512,
        attention_dim: int = 128,
        neighbour_dim: int = 256,
        heads: int = 8,
        landmarks: int = 256,
    ) -> None:
        super().__init__(num_classes)
        self.in_channels = in_channels
        self.places = 2
        self.neighbours = 8
        self.hidden = nn.Linear(in_channels, hidden_dim)
        self.context = NystromAttention(hidden_dim, heads, landmarks)
        self.query = nn.Linear(hidden_dim, neighbour_dim, bias=False)
        self.key = nn.Linear(hidden_dim, neighbour_dim, bias=False)
        self.value = nn.Linear(hidden_dim, hidden_dim)
        self.attention = GatedAttention(hidden_dim, attention_dim)
        self.classifier = nn.Linear(hidden_dim, num_classes)

    def _bag_and_scores(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if torch.jit.is_scripting() or is_recorded() or torch.is_grad_enabled():
            return self._held(image)
        return self._streamed(image) if is_long(image) else self._held(image)

    def _held(self, image: Tensor) -> tuple[Tensor, Tensor]:
        tiles, scores = self._tiles_and_scores(image)
        return exact_matmul(torch.softmax(scores, dim=2), tiles)[:, 0], scores

    @torch.jit.unused
    def _streamed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The same without gradients, holding some tiles at once."""
        self._check_channels(image)
        bags, scores = zip(*(self._stream(rows) for rows in image.mT), strict=True)
        return torch.stack(bags), torch.stack(scores)

    @torch.jit.unused
    def _stream(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The bag ``[i]`` and the readout's scores ``[1, n]`` of one slide ``[n, d + 2]``."""
        features, count = rows[:, : self.in_channels], len(rows)

        def hidden(start: int, stop: int) -> Tensor:
            return self.hidden(features[None, start:stop].to(self.hidden.weight.dtype))

        context = self.context.stream(hidden, count)
        weight = self._stream_weights(rows, lambda start, stop: hidden(start, stop) + context(start, stop))
        share = torch.softmax(weight, dim=0)
        pool = RunningPool(1, len(self.value.weight), share.dtype, share.device)
        for start in range(0, count, STEP_TILES):
            stop = min(start + STEP_TILES, count)
            entered = hidden(start, stop)
            near = share[None, start:stop, None] * self.value(entered)
            merged = _fused(near, entered + context(start, stop))
            pool.add(self.attention(merged, None)[0], merged[0])
        bag, scores = pool.result()
        return bag[0], scores

    @torch.jit.unused
    def _stream_weights(self, rows: Tensor, tiles: Rows) -> Tensor:
        """The ``w_i`` ``[n]``, from what gives the ``t_i``."""
        features, count = rows[:, : self.in_channels], len(rows)
        place, there = self._neighbours(rows[None, :, self.in_channels :].float().round())
        like = torch.empty(place.shape[1:], dtype=exact_dtype(self.key.weight.dtype), device=place.device)
        own = like.new_empty(count, 1)
        for part in torch.arange(count, device=place.device).split(1024):
            like[part], own[part] = self._likeness(features[None, part], features[None], place[:, part], there[:, part])
        weight = like.new_empty(count)
        for start in range(0, count, ASKING_TILES):
            stop = min(start + ASKING_TILES, count)
            asked = like.new_empty(stop - start, len(self.query.weight))
            for first in range(start, stop, STEP_TILES):
                last = min(first + STEP_TILES, stop)
                part = tiles(first, last)
                query, key = self.query(part)[0], self.key(part)[0]
                asked[first - start : last - start] = query
                weight[first:last] = own[first:last, 0] * (query * key).sum(dim=1)
            self._add_neighbours(weight[start:stop], asked, like[start:stop], place[0, start:stop], tiles, count)
        return weight * len(self.key.weight) ** -0.5

    @torch.jit.unused
    def _add_neighbours(
        self, weight: Tensor, asked: Tensor, like: Tensor, place: Tensor, tiles: Rows, count: int
    ) -> None:
        """Add ``sum_j A_ij q_i . k_j`` to ``weight`` ``[m]``; keys are made where some are asked for."""
        places, pairs = place.flatten().sort()
        bounds = torch.searchsorted(
            places, torch.arange(0, count + STEP_TILES, STEP_TILES, device=place.device)
        ).tolist()
        for number, (first, last) in enumerate(pairwise(bounds)):
            if first == last:
                continue
            start = number * STEP_TILES
            keys = self.key(tiles(start, min(start + STEP_TILES, count)))[0]
            for pair in pairs[first:last].split(STEP_TILES):
                asking = pair // self.neighbours
                met = (asked[asking] * keys[place.flatten()[pair] - start]).sum(dim=1)
                weight.index_add_(0, asking, met.to(weight.dtype) * like.flatten()[pair])

    def _check_channels(self, image: Tensor) -> None:
        if image.shape[1] != self.in_channels + self.places:
            raise ValueError(
                f"a bag for CAMIL has {self.in_channels} features and {self.places} positions a tile, this one "
                f"{image.shape[1]} channels; monai_mil.bags.PositionsAsFeaturesd sets positions behind the features"
            )

    def _tiles_and_scores(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The ``m_i`` ``[b, n, i]`` and the readout's scores ``[b, 1, n]``, float32 or better, of real tiles only."""
        if not is_recorded():
            self._check_channels(image)
        rows = image.transpose(1, 2)
        features = rows[:, :, : self.in_channels].to(self.hidden.weight.dtype)
        places = rows[:, :, self.in_channels :].float().round()
        hidden = self.hidden(features)
        tiles = hidden + self.context(hidden)
        width = self.key.weight.shape[0]
        around = self._around(features.detach().to(exact_dtype(features.dtype)), places, self.key(tiles))
        weight = (self.query(tiles).to(around.dtype) * around).sum(dim=2) * width**-0.5
        near = torch.softmax(weight, dim=1)[:, :, None] * self.value(hidden)
        merged = _fused(near, tiles)
        return merged, self.attention(merged, None)

    def _around(self, features: Tensor, places: Tensor, keys: Tensor) -> Tensor:
        """``sum_j A_ij k_j`` of every tile, ``[b, n, e]``, float32 or better."""
        place, there = self._neighbours(places)
        keys = keys.to(exact_dtype(keys.dtype))
        like, own = self._likeness(features, features, place, there)
        near = keys.gather(1, place.flatten(1)[:, :, None].expand(-1, -1, keys.shape[2]))
        near = near.unflatten(1, [place.shape[1], place.shape[2]])
        return own * keys + exact_matmul(like[:, :, None], near)[:, :, 0]

    def _likeness(self, some: Tensor, features: Tensor, place: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """``A_ij`` of some tiles ``[b, m, d]`` and those at ``place`` ``[b, m, k]``, and ``A_ii`` ``[b, m, 1]``."""
        apart = self._apart(some, features, place).masked_fill(~there, 0.0)
        spread = apart.sum(dim=2, keepdim=True).sqrt().clamp(min=1e-12)
        like = torch.exp(-apart.sqrt() / spread).masked_fill(~there, 0.0)
        own = like.amax(dim=2, keepdim=True)
        return like, torch.where(own > 0, own, torch.ones_like(own))

    def _apart(self, some: Tensor, features: Tensor, place: Tensor) -> Tensor:
        """``D_ij^2`` of some tiles and those at ``place``."""
        some = some.to(exact_dtype(some.dtype))
        found: list[Tensor] = []
        for index in range(self.neighbours):
            other = features.gather(1, place[:, :, index : index + 1].expand(-1, -1, features.shape[2]))
            found.append((some - other).square().sum(dim=2))
        return torch.stack(found, dim=2)

    def _neighbours(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Which tiles lie within one step of every tile, and which of these there are, ``[b, n, 8]``."""
        places = places.clamp(min=-1e6, max=1e6)
        if torch.jit.is_scripting() or is_recorded():
            return self._search(places)
        return self._look_up(places)

    @torch.jit.unused
    def _look_up(self, places: Tensor) -> tuple[Tensor, Tensor]:
        found = [touching_instances(bag, self.neighbours) for bag in places]
        return torch.stack([each[0] for each in found]), torch.stack([each[1] for each in found])

    def _search(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`_neighbours` in plain operations, of all pairs; the nearest come first."""
        count = torch.ones_like(places[0, :, 0]).sum().long()
        index = torch.ones_like(places[0, :, 0]).cumsum(dim=0).long() - 1
        steps = (places[:, :, None] - places[:, None]).abs().amax(dim=3).clamp(max=2.0).long()
        steps = steps.masked_fill((index[:, None] == index)[None], 2)
        order = steps * count + index
        # A bag of fewer tiles than neighbours has places to spare too, behind all others.
        spare = torch.full_like(order[:, :, :1], 1 << 40).expand(-1, -1, self.neighbours)
        best, place = torch.cat([order, spare], dim=2).topk(self.neighbours, dim=2, largest=False)
        there = best < 2 * count
        return torch.where(there, place, torch.zeros_like(place)), there

    @staticmethod
    @torch.jit.unused
    def contract_example() -> tuple[MILNetwork, tuple[int, ...]]:
        """A small network and the shape ``[d + 2]`` of one of its instances, for the contract's tests."""
        return CAMIL(10, 3, hidden_dim=16, attention_dim=8, neighbour_dim=8, heads=2, landmarks=8), (12,)


def _fused(near: Tensor, tiles: Tensor) -> Tensor:
    """The ``m_i`` of ``l_i`` and ``t_i``."""
    gate = torch.sigmoid(near)
    return gate * near + (1 - gate) * tiles
