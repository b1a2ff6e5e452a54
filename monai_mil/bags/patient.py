"""The bags of a patient's slides or scans as one."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from monai_mil.bags.info import BagInfo
from monai_mil.bags.instances import per_instance
from monai_mil.bags.storage import decode
from monai_mil.bags.transforms import bag_meta

Order = Callable[[Sequence[int]], Tensor]

_UNKNOWN = {"token_mask": True, "instance_labels": -1}


def join_bags(
    item: Mapping[Hashable, Any],
    key: Hashable,
    load: Callable[[Mapping[Hashable, Any]], Mapping[Hashable, Any]],
    order: Order | None = None,
) -> dict[Hashable, Any]:
    """One bag of the slides or scans of a patient, whose instances follow each other slide by slide.

    What is known of every instance is joined likewise, and ``slide_index`` (int64 ``[n]``) says of each which slide it
    is of. The image's ``meta`` names the patient as ``slide_id``, has no frame of its own, and holds those of the
    slides as JSON in ``slides``, a list of dictionaries like ``LoadBagd``'s ``meta``. Codes of uint8 files, each of
    which has a scale of its own, become float16.

    Args:
        item: a patient of ``Cohort.datalist``: ``item[key]`` lists the items of its slides.
        key: of the bag.
        load: what makes a bag of such an item.
        order: from the numbers of instances of the slides, the order of the joined instances, int64 ``[n]``; None
            leaves them slide by slide.
    """
    bags = [load(slide) for slide in item[key]]
    sizes = [bag[key].shape[1] for bag in bags]
    places = torch.arange(sum(sizes)) if order is None else order(sizes)
    index = torch.repeat_interleave(torch.arange(len(bags)), torch.tensor(sizes))
    joined: dict[Hashable, Any] = {**item, "slide_index": index[places]}
    joined[key] = MetaTensor(_image(bags, key, None if order is None else places), meta=_meta(item, bags, key))
    for name, rows in _beside(bags, sizes, key).items():
        joined[name] = rows[places]
    return joined


def _image(bags: Sequence[Mapping[Hashable, Any]], key: Hashable, places: Tensor | None) -> Tensor:
    """The features ``[d, n, ...]``, channels innermost in memory; those of a single slide stay where they are."""
    rows = [_rows(bag, key) for bag in bags]
    joined = rows[0] if len(rows) == 1 else torch.cat(rows)
    return (joined if places is None else joined[places]).movedim(-1, 0)


def _rows(bag: Mapping[Hashable, Any], key: Hashable) -> Tensor:
    rows = bag[key].as_tensor().movedim(0, -1)
    if "feature_scale" not in bag:
        return rows
    decoded = decode(rows.numpy(), bag["feature_scale"].numpy(), bag["feature_offset"].numpy())
    return torch.from_numpy(decoded).half()


def _beside(bags: Sequence[Mapping[Hashable, Any]], sizes: Sequence[int], key: Hashable) -> dict[Hashable, Tensor]:
    """What is known of the instances, joined: by all bags, or a mask, then True, or a label, then unknown."""
    known = {name for bag, size in zip(bags, sizes, strict=True) for name in per_instance(bag, size, but={key})}
    return {
        name: torch.cat([_values(name, bag, bags, size) for bag, size in zip(bags, sizes, strict=True)])
        for name in sorted(known)
        if name in _UNKNOWN or all(name in bag for bag in bags)
    }


def _values(name: str, bag: Mapping[Hashable, Any], bags: Sequence[Mapping[Hashable, Any]], size: int) -> Tensor:
    if name in bag:
        return torch.as_tensor(bag[name])
    like = next(torch.as_tensor(other[name]) for other in bags if name in other)
    return like.new_full((size, *like.shape[1:]), _UNKNOWN[name])


def _meta(item: Mapping[Hashable, Any], bags: Sequence[Mapping[Hashable, Any]], key: Hashable) -> dict[str, Any]:
    slides = [_named(bag, bag[key].meta) for bag in bags]
    remarks = [f"{slide['slide_id']}: {slide['remarks']}" for slide in slides if slide["remarks"]]
    first = slides[0]
    patient = BagInfo(str(item["patient_id"]), encoder=first["encoder"], encoder_digest=first["encoder_digest"])
    meta = bag_meta(first["filename_or_obj"], patient)
    return meta | {"remarks": "; ".join(remarks), "slides": json.dumps(slides)}


def _named(bag: Mapping[Hashable, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The meta data of a slide as JSON can hold them, under the name that the cohort gives it."""
    column = "scan_id" if bag.get("scan_id") or meta.get("scan_frame") else "slide_id"
    plain = {name: value.tolist() if isinstance(value, Tensor | np.ndarray) else value for name, value in meta.items()}
    name = bag.get("scan_id") or bag.get("slide_id") or meta["slide_id"]
    return {name: value for name, value in plain.items() if _is_plain(value)} | {"slide_id": name, "id_column": column}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool | list)
