"""One case of a cohort, a slide or a scan: locked, kept or made anew, and whatever goes wrong told as its result."""

from __future__ import annotations

import glob
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from filelock import FileLock, Timeout

from monai_mil.bags import BagFile, BagInfo
from monai_mil.errors import BagError, MonaiMILError
from monai_mil.files import make_folder

if TYPE_CHECKING:
    from monai_mil.encoders import Encoder

OnInstances = Callable[[int, int], None]


@dataclass(frozen=True)
class CaseKind:
    """What a run's cases and their instances are called in messages, progress and manifest."""

    case: str
    instances: str

    @property
    def cases(self) -> str:
        """The plural."""
        return f"{self.case}s"


@dataclass(frozen=True)
class CaseResult:
    """What became of one case: ``embedded`` now, ``kept`` from an earlier run, or ``failed`` with its ``error``.

    ``remarks`` are what its reader repaired, left out or assumed.
    """

    case_id: str
    path: str
    status: Literal["embedded", "kept", "failed"]
    instances: int = 0
    seconds: float = 0.0
    error: str | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class EmbedJob(ABC):
    """The work of embedding one slide or scan, which another process may do.

    Attributes:
        case_id: the case's name; its bags are ``<case_id>.h5``.
        path: the slide, or the scan's folder or file.
        out_dir: folder of the bags, or of the folders of their levels.
        device: where the encoder runs.
        overwrite: replace a bag made with other settings.
        storage: how the bag stores features, ``"float16"`` or ``"uint8"``.
    """

    kind: ClassVar[CaseKind]

    case_id: str
    path: Path
    out_dir: Path
    device: str
    overwrite: bool
    storage: str = field(default="float16", kw_only=True)

    @property
    def bags(self) -> tuple[Path, ...]:
        """The finished bag files, in the order in which they are made."""
        return (self.out_dir / f"{self.case_id}.h5",)

    @property
    def lock(self) -> Path:
        """Held by the process that works on the case."""
        return self.out_dir / ".partial" / f"{self.case_id}.lock"

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything the job writes whole or not at all."""
        return self.bags

    @property
    def unfinished(self) -> tuple[Path, ...]:
        """What a later run goes on from, of no use once the bags are there."""
        return ()

    @abstractmethod
    def embed(self, encoder: Encoder, on_instances: OnInstances) -> tuple[int, tuple[str, ...]]:
        """Write the bags that cannot be kept; returns the number of instances of all, and remarks."""

    @abstractmethod
    def required_settings(self, bag: Path, found: BagInfo) -> dict[str, Any]:
        """The settings, besides the encoder's, that an existing bag must record to be kept; ``found`` is its info."""

    def recorded_settings(self, found: BagInfo) -> dict[str, Any]:
        """The settings that the bag says it was made with, under the names of :meth:`required_settings`."""
        return dict(vars(found))


def run_job(job: EmbedJob, encoder: Encoder, on_instances: OnInstances, *, wait: bool) -> CaseResult | None:
    """Make the bags of one case; an error becomes a ``failed`` result and is not raised.

    Args:
        job: the case.
        encoder: the encoder.
        on_instances: told the instances done and the instances in all, after every batch.
        wait: wait for another process that works on the case.

    Returns:
        The result; None if another process works on the case and ``wait`` is false.
    """
    start = time.perf_counter()
    try:
        make_folder(job.lock.parent)
        with FileLock(job.lock, timeout=-1 if wait else 0):
            kept = [count for bag in job.bags if (count := kept_instances(job, bag, encoder)) is not None]
            if len(kept) == len(job.bags):
                _remove_unfinished(job)
                return CaseResult(job.case_id, str(job.path), "kept", sum(kept))
            _remove_left_by_killed_runs(job)
            instances, remarks = job.embed(encoder, on_instances)
            _remove_unfinished(job)
            seconds = time.perf_counter() - start
            return CaseResult(job.case_id, str(job.path), "embedded", instances, seconds, remarks=remarks)
    except Timeout:
        return None
    except Exception as error:
        message = str(error) if isinstance(error, MonaiMILError) else f"{job.kind.case} '{job.path}': {error!r}"
        return CaseResult(job.case_id, str(job.path), "failed", seconds=time.perf_counter() - start, error=message)


def _remove_left_by_killed_runs(job: EmbedJob) -> None:
    for file in job.files:
        for left in file.parent.glob(f".{glob.escape(file.name)}.*.tmp"):
            left.unlink(missing_ok=True)


def _remove_unfinished(job: EmbedJob) -> None:
    for file in job.unfinished:
        file.unlink(missing_ok=True)


def kept_instances(job: EmbedJob, bag: Path, encoder: Encoder) -> int | None:
    """Number of instances in a bag that exists and can stay; None if there is none, or it is to be replaced.

    Raises:
        BagError: the bag is damaged or made with other settings, and the job must not replace it; names it.
    """
    if not bag.exists():
        return None
    try:
        return _check_kept(job, bag, encoder)
    except BagError:
        if job.overwrite:
            return None
        raise


def _check_kept(job: EmbedJob, path: Path, encoder: Encoder) -> int:
    """Number of instances in the bag that exists; BagError if this run would make another one."""
    with BagFile(path) as bag:
        n, recorded = bag.n, job.recorded_settings(bag.info)
        recorded |= {"width": bag.width, "grid": bag.grid, "storage": bag.storage}
        required = job.required_settings(path, bag.info)
    required |= {
        "encoder": encoder.name,
        "encoder_digest": encoder.digest,
        "width": encoder.width,
        "grid": encoder.grid,
        "storage": job.storage,
    }
    different = [
        f"{name} {recorded.get(name)} instead of {value}"
        for name, value in required.items()
        if recorded.get(name) != value
    ]
    if different:
        raise BagError(
            f"bag '{path}': made with other settings ({'; '.join(different)}); "
            "choose another folder, or overwrite to make it anew"
        )
    return n
