"""Bag files into MONAI's pipelines, whose features stay in their files and in their own type."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from monai_mil.bags.file import BagFile
from monai_mil.bags.info import BagInfo
from monai_mil.bags.patient import join_bags
from monai_mil.bags.storage import MappedFeatures, first_bad_row
from monai_mil.bags.transforms import bag_meta, bag_tensor, instance_places
from monai_mil.errors import BagError, NoTissueError
from monai_mil.scans import ORIENTATION, Depth, ScanFrame, SlicePreset, find_preset, same_but_statistics
from monai_mil.slides import recorded_decoder

logger = logging.getLogger(__name__)


class LoadBagd(MapTransform):
    """Replace the path of a bag file by its features and check that they are what the network expects.

    The features become a ``MetaTensor`` ``[d, n]``, or ``[d, n, h, w]`` of a spatial bag, of the file's own type: a
    network widens what it works on. They stay in the file, as a map of its pages, where they stand there in one piece
    as float16 or float32, as our own do. Files that other programs have chunked or compressed are read; float64 and
    the codes of a uint8 file become float32. The image's ``meta`` holds the frame
    (``slide_id``, ``slide_path``, ``mpp``, ``level0_size``, ``tile_size_level0``, ...; NaN or empty where the
    file does not say). ``coords`` (int64 ``[n, 2]``) is set beside it. For a scan ``meta["scan_frame"]`` is the JSON of
    its ``ScanFrame`` (``""`` for a slide), ``meta["remarks"]`` what the reader assumed, repaired or left out,
    ``meta["scan_depth"]`` and ``meta["scan_lungs"]`` that of its ``Depth`` and ``LungField`` (``""`` where it has
    none), and ``positions_mm`` (float32 ``[n]``) is set too; ``instance_labels`` (int64 ``[n]``) where the file holds
    them. Where tokens of border tiles lie beyond the slide, ``token_mask`` (bool ``[n, h, w]``) is False for them. In
    place of a path there may be the items of a patient's slides, which become one bag (see ``bags.patient``).

    Args:
        keys: keys of the paths.
        width: number of feature channels the network takes; None for any.
        encoder: name of the encoder the network was trained with; files that name none are taken.
        encoder_digest: what tells its weights and preprocessing from those of others of that name; likewise.
        preset: name or ``preset.json`` of the slice preset the network was trained with; files that name none are
            taken. A name whose statistics are a training split's is compared without them: give the file.
        extras: further numeric datasets of the file to set.
        allow_missing_keys: skip absent keys.
        grid: tokens of an instance the network takes, ``(h, w)``; None for any, vectors too.
        mapped: leave what is no float16 or float32 in the file too, for networks that read a bag in chunks
            (``INSIGHT``) and :func:`monai_mil.training.prepare_token_batch`: of a uint8 file the image holds the codes,
            and ``feature_scale`` and ``feature_offset`` (float32 ``[d]``) are set beside it. What must be read, because
            it is compressed for example, becomes float16. Load with ``num_workers=0``: there is nothing to wait for,
            and a worker would copy the file.
        depth: layers of the scans the network was trained on, None if each slice was one; ``"any"`` takes all, and bags
            that do not come from scans are taken whatever it says.
        depth_mode: how the layers were made, see ``scans.Depth``.
        lungs: method by which these scans were blanked outside the lungs, None if they were not; ``"any"`` as above.
        non_finite: what happens to an instance with a feature that is NaN or infinite: ``"raise"`` refuses the bag,
            ``"drop"`` leaves the instance out, ``"zero"`` sets its features to 0; the last two warn. Bags that stay in
            the file (``mapped``) are always refused.

    Raises:
        BagError: the file is unreadable or empty, of another width, grid, encoder, preset, depth, lungs or orientation,
            made with other weights or preprocessing of the encoder than the first file that was loaded, or holds NaN
            (see ``non_finite``); names the file.
        SettingsError: the preset or the depth is unknown.
        ValueError: ``non_finite`` is none of these.

    Examples:
        >>> from monai_mil.bags import LoadBagd
        >>> from monai_mil.cohorts import read_cohort
        >>> from monai_mil.synthetic import make_bag_cohort
        >>> cohort = read_cohort(make_bag_cohort(folder, num_bags=10, width=8, bag_size=(5, 5)))
        >>> items = cohort.datalist("train", folder / "bags")
        >>> item = LoadBagd("image", width=8)(items[0])
        >>> list(item["image"].shape), list(item["coords"].shape), item["label"]
        ([8, 5], [5, 2], 0)
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        width: int | None = None,
        encoder: str | None = None,
        extras: Sequence[str] = (),
        allow_missing_keys: bool = False,
        *,
        encoder_digest: str | None = None,
        preset: str | None = None,
        grid: Sequence[int] | None = None,
        mapped: bool = False,
        depth: int | Literal["any"] | None = "any",
        depth_mode: Literal["resize", "middle"] = "resize",
        lungs: Literal["any", "threshold", "lungmask"] | None = "any",
        non_finite: Literal["raise", "drop", "zero"] = "raise",
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if non_finite not in ("raise", "drop", "zero"):
            raise ValueError(f"non_finite must be 'raise', 'drop' or 'zero', not '{non_finite}'")
        self.non_finite = non_finite
        self.width = width
        self.encoder = encoder
        self.encoder_digest = encoder_digest
        self.preset = None if preset is None else find_preset(preset)
        self.extras = tuple(extras)
        self.grid = None if grid is None else tuple(grid)
        self.mapped = mapped
        self.depth: Depth | Literal["any"] | None = Depth(depth, depth_mode) if isinstance(depth, int) else depth
        self.lungs = lungs
        self._first: dict[Hashable, BagInfo] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load ``data[key]``; the input dictionary is left as it is."""
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            if isinstance(loaded[key], list):
                loaded |= join_bags(loaded, key, self)
                continue
            with self._open(loaded[key], data.get("slide_path")) as bag:
                self._check(bag)
                self._check_weights(bag, key)
                beside = instance_places(bag.coords, bag.info, bag.grid)
                names = {*self.extras, *({"instance_labels"} & set(bag.extras))}
                beside |= {name: torch.from_numpy(bag.extra(name)) for name in sorted(names)}
                loaded |= self._features(bag, key, beside)
                loaded.update(beside)
        return loaded

    def _open(self, path: Any, slide: Any) -> BagFile:
        """The bag, knowing its slide where the item names one and the bag's own is unknown or gone."""
        bag = BagFile(path, encoder=self.encoder)
        if not slide or not Path(slide).exists() or (bag.info.slide_path and Path(bag.info.slide_path).exists()):
            return bag
        if bag.needs_mpp:
            from monai_mil.slides import open_slide

            bag.close()
            with open_slide(slide) as opened:
                bag = BagFile(path, encoder=self.encoder, mpp=opened.mpp)
        bag.info = dataclasses.replace(bag.info, slide_path=str(slide))
        return bag

    def _features(self, bag: BagFile, key: Hashable, beside: dict[str, Tensor]) -> dict[Hashable, Any]:
        """The image, and what belongs to it alone; instances that are left out are left out of ``beside`` too."""
        if not self.mapped:
            features = bag.floats()
            if self.non_finite != "raise":
                features = self._mended(bag, features, beside)
            return {key: bag_tensor(bag.path, features, bag.info)}
        found = bag.mapped()
        if bag.info.version is None:  # our own files were checked when they were written
            _check_finite(bag, found)
        items: dict[Hashable, Any] = {
            key: MetaTensor(found.features.movedim(0, 1), meta=bag_meta(bag.path, bag.info)),
            "feature_scale": found.scale,
            "feature_offset": found.offset,
        }
        return {name: value for name, value in items.items() if value is not None}

    def _mended(self, bag: BagFile, features: Tensor, beside: dict[str, Tensor]) -> Tensor:
        if first_bad_row(features.movedim(1, -1)) is None:
            return features
        finite = torch.isfinite(features.flatten(1)).all(dim=1)
        bad = int((~finite).sum())
        if bad == bag.n:
            raise BagError(f"bag '{bag.path}': no instance has finite features; embed it again")
        done = "are left out" if self.non_finite == "drop" else "count as 0"
        logger.warning("bag '%s': %d of %d instances have NaN or infinite features and %s", bag.path, bad, bag.n, done)
        if self.non_finite == "zero":
            return torch.where(finite.reshape(-1, *[1] * (features.ndim - 1)), features, 0.0)
        beside.update({name: values[finite] for name, values in beside.items()})
        return features[finite]

    def _check(self, bag: BagFile) -> None:
        if bag.n == 0:
            raise NoTissueError(f"bag '{bag.path}': no instances; the slide had no tissue, leave it out of the cohort")
        if self.width is not None and bag.width != self.width:
            raise BagError(
                f"bag '{bag.path}': {bag.width} feature channels (encoder {bag.info.encoder}), the network takes "
                f"{self.width}; embed with the network's encoder"
            )
        if self.grid is not None and bag.grid != self.grid:
            found = "vectors" if bag.grid is None else f"tokens on a grid {bag.grid[0]} x {bag.grid[1]}"
            raise BagError(
                f"bag '{bag.path}': {found} (encoder {bag.info.encoder}), the network takes tokens on a grid "
                f"{self.grid[0]} x {self.grid[1]}; embed with the network's encoder and its option spatial"
            )
        if self.encoder is not None and bag.info.encoder not in (None, self.encoder):
            raise BagError(
                f"bag '{bag.path}': made by encoder '{bag.info.encoder}', the network was trained with "
                f"'{self.encoder}'; embed with that one, or set 'encoder' if it was trained on these features"
            )
        if self.preset is not None and bag.info.preset is not None:
            self._check_preset(bag, self.preset, SlicePreset.from_record(bag.info.preset))
        if bag.info.scan is not None:
            _check_orientation(bag.path, bag.info.scan)
            self._check_cut(bag)

    def _check_weights(self, bag: BagFile, key: Hashable) -> None:
        """One name may stand for several encoders; features of two make no sense to one network."""
        if not bag.info.encoder_digest:
            return
        if self.encoder_digest is not None and bag.info.encoder_digest != self.encoder_digest:
            raise BagError(
                f"bag '{bag.path}': encoder '{bag.info.encoder}' had other weights or preprocessing than the one the "
                "network was trained with; embed with that one"
            )
        first = self._first.setdefault(key, bag.info)
        decoders = [recorded_decoder(info.decoding, info.decoder) for info in (bag.info, first)]
        if bag.info.scan is None and decoders[0] != decoders[1]:
            raise BagError(
                f"bag '{bag.path}': its tiles were decoded by '{decoders[0]}', those of bag '{first.slide_id}' in this "
                f"run by '{decoders[1]}', which gives other pixels; embed all with one decoder"
            )
        if bag.info.encoder_digest != first.encoder_digest:
            raise BagError(
                f"bag '{bag.path}': encoder '{bag.info.encoder}' had other weights or preprocessing than encoder "
                f"'{first.encoder}' of bag '{first.slide_id}' in this run; embed all with one"
            )

    def _check_cut(self, bag: BagFile) -> None:
        """Other slices than the network knows are other features, and change a probability pooled over them."""
        method = None if bag.info.lungs is None else bag.info.lungs.method
        found = (_depth_in_words(bag.info.depth), _lungs_in_words(method))
        wanted = (
            found[0] if self.depth == "any" else _depth_in_words(self.depth),
            found[1] if self.lungs == "any" else _lungs_in_words(self.lungs),
        )
        if found != wanted:
            raise BagError(
                f"bag '{bag.path}': {', '.join(found)}; the network was trained on {', '.join(wanted)}; embed the "
                "scans with the network's depth and lungs"
            )

    @staticmethod
    def _check_preset(bag: BagFile, wanted: SlicePreset, found: SlicePreset) -> None:
        same = same_but_statistics(wanted, found) if wanted.mean is None else wanted == found
        if not same:
            detail = " with other windows or statistics" if found.name == wanted.name else ""
            raise BagError(
                f"bag '{bag.path}': made with slice preset '{found.name}'{detail}, the network was trained with "
                f"'{wanted.name}'; embed the scans with that one"
            )


def _check_orientation(path: Path, scan: ScanFrame) -> None:
    """Bags of earlier versions hold prone, mirrored or coronal slices as they were stored."""
    if scan.axis_codes != ORIENTATION:
        raise BagError(
            f"bag '{path}': made by an earlier version of slices that run {scan.axis_codes}; scans are now turned to "
            f"{ORIENTATION} first, so its features are others: embed the scan again with --overwrite"
        )


def _depth_in_words(depth: Depth | None) -> str:
    return "every slice as it is" if depth is None else f"a depth of {depth.layers} ({depth.mode})"


def _lungs_in_words(method: str | None) -> str:
    return "whole scans" if method is None else f"the lungs only (method '{method}')"


def _check_finite(bag: BagFile, found: MappedFeatures) -> None:
    """Raise a BagError that names the first instance with NaN or infinity."""
    bad = first_bad_row(found.features.movedim(1, -1))
    if bad is not None:
        raise BagError(
            f"bag '{bag.path}': the features of instance {bad} are NaN, infinite or beyond float16; embed it again"
        )
