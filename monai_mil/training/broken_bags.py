"""Training and evaluation without the bags that cannot be read."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch.distributed as dist
from ignite.engine import Engine, Events

from monai_mil.bags import BagFile, FailedCase, first_non_finite_row, level_folder, write_failures
from monai_mil.errors import BagError, CohortError, NoTissueError

logger = logging.getLogger(__name__)

_NUMBERS_READ = 1 << 22


class BrokenBags:
    """Finds the bags of a run that are missing, damaged, without instances or not finite, before it begins.

    The ``leave_out`` of ``read_cohort`` and ``read_survival_cohort``: every file is read once, by one of a distributed
    run's processes. Each broken bag is told in a line and listed in ``failed.csv``, as inference does; attached to an
    engine, it counts them again at the end. A bag that is whole but does not fit the network (of another width or
    encoder) is a mistake in the settings and stays an error.

    Args:
        skip: leave them out; False leaves out nothing and reads nothing.
        bag_dir: folder of the bags; of quadtrees that of the coarsest level.
        output_dir: gets ``failed.csv``; it is there if, and only if, bags were left out.
        splits: those the run takes; None in it stands for all cases.
        levels: files of a bag, one a level of a quadtree.

    Raises:
        CohortError: more than half of a split is broken, or none of a class is left there.
    """

    def __init__(
        self,
        skip: bool,
        bag_dir: str | Path,
        output_dir: str | Path,
        splits: Sequence[str | None] = ("train", "val"),
        levels: int = 1,
    ) -> None:
        self.skip = skip
        self.bag_dir = Path(bag_dir)
        self.table = Path(output_dir, "failed.csv")
        self.splits = tuple(splits)
        self.levels = levels
        self._count = ""

    def __call__(self, cohort: Any) -> set[str]:
        """The names of the broken bags of a ``cohorts.Cohort``."""
        if not self.skip:
            return set()
        lists = [_bags_of(cohort.datalist(split, self.bag_dir, check=False)) for split in self.splits]
        items = {item[cohort.id_column]: item for items in lists for item in items}
        broken = self._broken(items)
        if idist.get_rank() == 0:
            for case in broken.values():
                logger.warning("left out: %s", case.message)
            write_failures(self.table, cohort.id_column, list(broken.values()))
        self._count = f"{len(items)} bags: {len(items) - len(broken)} taken, {len(broken)} left out"
        self._count += f" (see '{self.table}')" if broken else ""
        self._tell_count()
        for split, listed in zip(self.splits, lists, strict=True):
            whole = [item for item in listed if item[cohort.id_column] not in broken]
            _check_what_is_left(f"cohort '{cohort.source}', split '{split}'", listed, whole, cohort.classes)
        return set(broken)

    def attach(self, engine: Engine) -> None:
        """Count the bags that were left out once more when a training or evaluation ends."""
        if self.skip:
            engine.add_event_handler(Events.COMPLETED, self._tell_count)

    def _tell_count(self) -> None:
        if idist.get_rank() == 0:
            logger.info("%s", self._count)

    def _broken(self, items: Mapping[str, Mapping[str, Any]]) -> dict[str, FailedCase]:
        """The broken ones among the items by their names, in the items' order; every process must call."""
        own = {}
        for name in list(items)[idist.get_rank() :: idist.get_world_size()]:
            try:
                for path in self._files(Path(items[name]["image"])):
                    _check_whole(path)
            except BagError as error:
                own[name] = FailedCase(name, error.status, str(error))
        found = _of_all_processes(own)
        return {name: found[name] for name in items if name in found}

    def _files(self, coarsest: Path) -> Iterator[Path]:
        if self.levels == 1:
            yield coarsest
            return
        for level in reversed(range(self.levels)):
            yield level_folder(coarsest.parent.parent, level) / coarsest.name


def _bags_of(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """An item for every file, where those of a patient's slides are one item too."""
    return [bag for item in items for bag in (item["image"] if isinstance(item["image"], list) else [item])]


def _check_whole(path: Path) -> None:
    """Raise a BagError if the bag has no instances or anything in it cannot be read or is not finite."""
    with BagFile(path) as bag:
        if bag.n == 0:
            raise NoTissueError(f"bag '{path}': no instances; the slide had no tissue")
        rows = max(1, _NUMBERS_READ // math.prod((bag.width, *(bag.grid or ()))))
        for number, block in enumerate(bag.chunks(rows)):
            bad = _first_non_finite(block)
            if bad is not None:
                row = number * rows + bad
                raise BagError(f"bag '{path}': the features of instance {row} are NaN or infinite; embed it again")


def _first_non_finite(block: np.ndarray) -> int | None:
    if block.dtype == np.float16:
        return first_non_finite_row(block)
    finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
    return None if finite.all() else int(finite.argmin())


def _of_all_processes(own: dict[str, FailedCase]) -> dict[str, FailedCase]:
    if idist.get_world_size() == 1:
        return own
    parts: list[dict[str, FailedCase]] = [{} for _ in range(idist.get_world_size())]
    dist.all_gather_object(parts, own)
    return {name: case for part in parts for name, case in part.items()}


def _check_what_is_left(
    where: str, items: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]], classes: Sequence[str]
) -> None:
    advice = "embed them again, or see failed.csv"
    broken = len(items) - len(whole)
    if 2 * broken > len(items):
        raise CohortError(f"{where}: {broken} of {len(items)} bags are broken, more than half; {advice}")
    lost = sorted(_classes_of(items) - _classes_of(whole))
    if lost:
        names = ", ".join(f"'{classes[index]}'" for index in lost)
        raise CohortError(f"{where}: no bag of class {names} is left without the {broken} broken ones; {advice}")


def _classes_of(items: Sequence[Mapping[str, Any]]) -> set[int]:
    """Indices of the classes that occur, of labels that hold 0, 1 or nothing those that are 1 somewhere."""
    labels = np.array([item["label"] for item in items if "label" in item], dtype=float)
    if labels.ndim == 1:
        return set(labels[labels >= 0].astype(int).tolist())
    return {index for index, column in enumerate(labels.T) if (column == 1).any() and not (column > 1).any()}
