"""What a network must fit: the encoder, width and grid of a cohort's bags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from monai_mil.bags.file import BagFile
from monai_mil.errors import BagError


@dataclass(frozen=True)
class BagFacts:
    """What the bags of a cohort have in common; see :func:`bag_facts`.

    Attributes:
        encoder: name of the encoder, None where the bags do not say it.
        width: number of feature channels.
        grid: ``[h, w]`` of spatial bags, None for vectors.
        encoder_digest: what tells the encoder's weights from others, None where the bags do not say it.
    """

    encoder: str | None
    width: int
    grid: list[int] | None
    encoder_digest: str | None = None


def bag_facts(datalist: Iterable[Mapping[str, Any]]) -> BagFacts:
    """The facts of the first bag of a data list that can be read; ``LoadBagd`` holds the others to them.

    Args:
        datalist: items whose ``image`` is a bag, such as ``Cohort.datalist`` gives.

    Raises:
        BagError: none can be read; names the first.

    Examples:
        >>> from monai_mil.bags import bag_facts
        >>> from monai_mil.cohorts import read_cohort
        >>> from monai_mil.synthetic import make_bag_cohort
        >>> cohort = read_cohort(make_bag_cohort(folder, num_bags=10, width=8, bag_size=(5, 5)))
        >>> bag_facts(cohort.datalist("train", folder / "bags"))
        BagFacts(encoder='synthetic', width=8, grid=None, encoder_digest='4e3b854d26c011aa')
    """
    first: BagError | None = None
    for item in datalist:
        try:
            image = item["image"]
            with BagFile(image[0]["image"] if isinstance(image, list) else image) as bag:
                grid = None if bag.grid is None else list(bag.grid)
                return BagFacts(bag.info.encoder, bag.width, grid, bag.info.encoder_digest or None)
        except BagError as error:
            first = first or error
    raise first or BagError("no bag in the data list; embed the cohort first")
