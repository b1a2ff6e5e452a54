"""The bags of a slide's levels into MONAI's pipelines, as one."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from monai_mil.bags.file import BagFile, level_folder
from monai_mil.bags.load import LoadBagd
from monai_mil.bags.patient import join_bags
from monai_mil.bags.storage import MappedFeatures, decode, first_non_finite_row
from monai_mil.bags.transforms import bag_meta
from monai_mil.errors import BagError, SettingsError
from monai_mil.networks.blocks import tree_sizes
from monai_mil.slides import child_coords

_ROWS_DECODED = 4096


class LoadTreed(LoadBagd):
    """Replace the path of the coarsest level's bag by the features of all levels, packed: coarsest first.

    ``monai-mil embed --levels 3`` writes ``level_2/<slide_id>.h5`` and beside it ``level_1`` and ``level_0``. Their
    features become one float16 ``MetaTensor`` ``[d, N]``: the ``n`` rows of the coarsest level, then the ``4 n`` of the
    next, to the finest, ``N = n (4^levels - 1) / 3``. Its ``meta`` holds the frame of the finest level, as
    ``LoadBagd``'s. Set beside it, in the same order, are ``coords`` (int64 ``[N, 2]``), ``inside`` (bool ``[N]``, False
    where a tile lies beyond the slide), ``tissue_fraction`` (float32 ``[N]``), and ``instance_labels`` (int64 ``[N]``)
    where all files hold them. The slides of a patient are packed as one: the coarsest tiles of all of them first.

    Args:
        keys: keys of the paths.
        levels: number of levels; with 1 any bag of vectors will do.
        width: number of feature channels the network takes; None for any.
        encoder: name of the encoder the network was trained with; files that name none are taken.
        encoder_digest: what tells its weights and preprocessing from those of others of that name; likewise.
        tile_size: pixels of the tiles the network was trained on, None for any; files that tell none are taken.
        allow_missing_keys: skip absent keys.

    Raises:
        BagError: a file is missing, unreadable, empty, of another width, encoder or tile size than the network's, made
            with other weights than the first file that was loaded, or holds NaN; or the files of a slide are no
            quadtree.
        SettingsError: no levels.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        levels: int = 3,
        width: int | None = None,
        encoder: str | None = None,
        tile_size: int | None = None,
        allow_missing_keys: bool = False,
        *,
        encoder_digest: str | None = None,
    ) -> None:
        super().__init__(keys, width, encoder, encoder_digest=encoder_digest, allow_missing_keys=allow_missing_keys)
        if levels < 1:
            raise SettingsError(f"levels {levels}: must be at least 1")
        self.levels = levels
        self.tile_size = tile_size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load the levels of ``data[key]``; the input dictionary is left as it is."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            if isinstance(loaded[key], list):
                loaded |= join_bags(loaded, key, self, self._level_by_level)
                continue
            with ExitStack() as opened:
                bags = [opened.enter_context(BagFile(path)) for path in self._files(Path(loaded[key]))]
                self._check_tree(bags, key)
                finest = bags[-1]
                loaded[key] = MetaTensor(_features(bags).T, meta=bag_meta(finest.path, finest.info))
                loaded |= _places(bags)
        return loaded

    def _level_by_level(self, sizes: Sequence[int]) -> Tensor:
        """The coarsest tiles of all slides first, then the next level's: packed as a single slide is, [N]."""
        slides = torch.arange(sum(sizes)).split(list(sizes))
        levels = [rows.split(tree_sizes(len(rows), self.levels)) for rows in slides]
        return torch.cat([rows for level in zip(*levels, strict=True) for rows in level])

    def _files(self, coarsest: Path) -> list[Path]:
        """The bags of all levels, coarsest first."""
        if self.levels == 1:
            return [coarsest]
        folder, top = coarsest.parent.parent, self.levels - 1
        if coarsest.parent != level_folder(folder, top):
            raise BagError(
                f"bag '{coarsest}': must lie in a folder 'level_{top}', the coarsest of {self.levels} levels, with the "
                "other levels' folders beside it; embed with that many levels, or set levels"
            )
        return [level_folder(folder, level) / coarsest.name for level in reversed(range(self.levels))]

    def _check_tree(self, bags: Sequence[BagFile], key: Hashable) -> None:
        for bag in bags:
            self._check(bag)
            if bag.grid is not None:
                raise BagError(f"bag '{bag.path}': holds token maps; embed without the option spatial")
            if None not in (self.tile_size, bag.info.tile_size) and self.tile_size != bag.info.tile_size:
                raise BagError(
                    f"bag '{bag.path}': its tiles are of {bag.info.tile_size} px, the network's of {self.tile_size}; "
                    f"embed with --tile-size {self.tile_size}, or set tile_size to what the network was trained on"
                )
        for coarse, fine in pairwise(bags):
            wrong = next(_differences(coarse, fine), None)
            if wrong is not None:
                raise BagError(
                    f"slide '{coarse.info.slide_id}': bags '{coarse.path}' and '{fine.path}' are no levels of one "
                    f"quadtree: {wrong}; remove them and embed the slide again with levels"
                )
        for bag in bags:
            self._check_weights(bag, key)


def _differences(coarse: BagFile, fine: BagFile) -> Iterator[str]:
    """What keeps ``fine`` from being the level below ``coarse``, in words."""
    above, below = coarse.info, fine.info
    if above.slide_id != below.slide_id:
        yield f"slides '{above.slide_id}' and '{below.slide_id}'"
    if fine.n != 4 * coarse.n:
        yield f"{coarse.n} and {fine.n} tiles instead of 4 below each"
    if None not in (above.level, below.level) and above.level != below.level + 1:  # type: ignore[operator]
        yield f"they are levels {above.level} and {below.level}"
    if coarse.width != fine.width:
        yield f"{coarse.width} and {fine.width} feature channels"
    for name, factor in (("encoder", 1), ("encoder_digest", 1), ("tile_size", 1), ("target_mpp", 2)):
        first, second = getattr(above, name), getattr(below, name)
        if None not in (first, second) and first != factor * second:
            yield f"{name.replace('_', ' ')} {first} and {second}" + (" instead of half" if factor == 2 else "")
    step = above.tile_size_level0
    if step is not None and not np.array_equal(child_coords(coarse.coords, step), fine.coords):
        wrong = np.flatnonzero((child_coords(coarse.coords, step) != fine.coords).any(axis=1))[0]
        yield f"tile {wrong} of the finer at {tuple(fine.coords[wrong].tolist())} is no child of tile {wrong // 4}"


def _features(bags: Sequence[BagFile]) -> Tensor:
    """The features of all levels below each other, float16 ``[N, d]``, each read once from its map."""
    packed = torch.empty(sum(bag.n for bag in bags), bags[0].width, dtype=torch.float16)
    for bag, rows in zip(bags, packed.split([bag.n for bag in bags]), strict=True):
        _read(bag.mapped(), rows)
        bad = first_non_finite_row(rows.numpy())
        if bad is not None:
            raise BagError(
                f"bag '{bag.path}': the features of tile {bad} at {tuple(bag.coords[bad].tolist())} are NaN, infinite "
                "or beyond float16; embed it again"
            )
    return packed


def _read(stored: MappedFeatures, out: Tensor) -> None:
    if stored.scale is None or stored.offset is None:
        out.copy_(stored.features)
        return
    for start in range(0, len(out), _ROWS_DECODED):
        codes = stored.features[start : start + _ROWS_DECODED].numpy()
        features = decode(codes, stored.scale.numpy(), stored.offset.numpy())
        out[start : start + _ROWS_DECODED] = torch.from_numpy(features)


def _places(bags: Sequence[BagFile]) -> dict[Hashable, Tensor]:
    """Where the tiles of all levels lie and what is known of them."""
    parts = {
        "coords": [bag.coords for bag in bags],
        "inside": [_extra(bag, "inside", True, np.bool_) for bag in bags],
        "tissue_fraction": [_extra(bag, "tissue_fraction", 1.0, np.float32) for bag in bags],
    }
    if all("instance_labels" in bag.extras for bag in bags):
        parts["instance_labels"] = [bag.extra("instance_labels") for bag in bags]
    return {name: torch.from_numpy(np.concatenate(values)) for name, values in parts.items()}


def _extra(bag: BagFile, name: str, unknown: float, dtype: Any) -> np.ndarray:
    """A dataset with a value a tile; ``unknown`` throughout where the file, another program's, has none."""
    if name not in bag.extras:
        return np.full(bag.n, unknown, dtype)
    values = bag.extra(name)
    if values.shape != (bag.n,):
        raise BagError(f"bag '{bag.path}': '{name}' is {list(values.shape)} for {bag.n} tiles; embed it again")
    return values.astype(dtype)
