"""One case of a cohort, a slide or a scan: locked, kept or made anew, and whatever goes wrong told as its result."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from filelock import Timeout

from monai_mil.bags import BagFile, BagInfo
from monai_mil.embedding.attempts import attempted
from monai_mil.errors import BagError, DamagedBagError, MonaiMILError
from monai_mil.files import make_folder, partial_names
from monai_mil.identity import change_stamp, content_identity
from monai_mil.locks import locked
from monai_mil.names import file_stem

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

    ``remarks`` are what its reader repaired, left out or assumed; ``cause`` says in two words why a case failed.
    """

    case_id: str
    path: str
    status: Literal["embedded", "kept", "failed"]
    instances: int = 0
    seconds: float = 0.0
    error: str | None = None
    remarks: tuple[str, ...] = ()
    cause: str | None = None


@dataclass(frozen=True)
class EmbedJob(ABC):
    """The work of embedding one slide or scan, which another process may do.

    Attributes:
        case_id: the case's name; its bags are ``<case_id>.h5``, shortened if that is too long for a file's name.
        path: the slide, or the scan's folder or file.
        out_dir: folder of the bags, or of the folders of their levels.
        device: where the encoder runs.
        overwrite: replace a bag made with other settings.
        storage: how the bag stores features, ``"float16"`` or ``"uint8"``.
        retry: try it though it was set aside, see :func:`~monai_mil.embedding.attempts.attempted`.
    """

    kind: ClassVar[CaseKind]
    ahead: ClassVar[int] = 0
    """How many cases may be begun while one is encoded; each holds what its ``embed`` has read by then."""

    case_id: str
    path: Path
    out_dir: Path
    device: str
    overwrite: bool
    storage: str = field(default="float16", kw_only=True)
    retry: bool = field(default=False, kw_only=True)

    @property
    def stem(self) -> str:
        """What the case's files are called, without their endings."""
        return file_stem(self.case_id)

    @property
    def bags(self) -> tuple[Path, ...]:
        """The finished bag files, in the order in which they are made."""
        return (self.out_dir / f"{self.stem}.h5",)

    @property
    def lock(self) -> Path:
        """Held by the process that works on the case."""
        return self.out_dir / ".partial" / f"{self.stem}.lock"

    @property
    def attempt(self) -> Path:
        """The note that is there while the case is worked on, and stays where that ends the process."""
        return self.out_dir / ".partial" / f"{self.stem}.attempt"

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

    @abstractmethod
    def source_files(self) -> tuple[Path, ...]:
        """The files whose content the bag is of."""

    def touched_files(self) -> tuple[Path, ...]:
        """Every file on which the content may depend, found without reading one; ``source_files`` by default."""
        return self.source_files()

    def complete_kept(self) -> None:  # noqa: B027
        """Make what is wanted beside the bags, now that all of them are kept; nothing by default."""

    def remarks_on(self, found: BagInfo) -> tuple[str, ...]:
        """What differs from a bag of this job made today without making it another one; nothing by default."""
        return ()

    def source(self) -> tuple[str, str]:
        """Which content the bag is of: ``source`` and ``source_stamp`` of its info."""
        stamp = change_stamp(self.touched_files())
        return content_identity(self.source_files()), stamp

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
        with locked(job.lock, wait=wait), attempted(job):
            damaged: list[str] = []
            kept = [one for bag in job.bags if (one := kept_bag(job, bag, encoder, damaged.append)) is not None]
            if len(kept) == len(job.bags):
                _remove_unfinished(job)
                job.complete_kept()
                remarks = tuple(dict.fromkeys(remark for one in kept for remark in one.remarks))
                return CaseResult(job.case_id, str(job.path), "kept", sum(one.n for one in kept), remarks=remarks)
            _remove_left_by_killed_runs(job)
            instances, found = job.embed(encoder, on_instances)
            remarks = (*damaged, *found)
            _remove_unfinished(job)
            seconds = time.perf_counter() - start
            return CaseResult(job.case_id, str(job.path), "embedded", instances, seconds, remarks=remarks)
    except Timeout:
        return None
    except Exception as error:
        message = str(error) if isinstance(error, MonaiMILError) else f"{job.kind.case} '{job.path}': {error!r}"
        cause = error.status if isinstance(error, MonaiMILError) else MonaiMILError.status
        seconds = time.perf_counter() - start
        return CaseResult(job.case_id, str(job.path), "failed", seconds=seconds, error=message, cause=cause)


def _remove_left_by_killed_runs(job: EmbedJob) -> None:
    for file in job.files:
        for left in partial_names(file):
            left.unlink(missing_ok=True)


def _remove_unfinished(job: EmbedJob) -> None:
    for file in job.unfinished:
        file.unlink(missing_ok=True)


@dataclass(frozen=True)
class KeptBag:
    """A bag that stays: its number of instances, and what is to be said of it."""

    n: int
    remarks: tuple[str, ...] = ()


def kept_bag(
    job: EmbedJob, bag: Path, encoder: Encoder, tell: Callable[[str], None] = lambda remark: None
) -> KeptBag | None:
    """What is known of a bag that exists and can stay; None if there is none, or it is to be replaced.

    A bag that cannot be read counts as not made, and ``tell`` is told.

    Raises:
        BagError: the bag is of another slide or scan, or made with other settings, and the job must not replace it;
            names it.
    """
    if not bag.exists():
        return None
    try:
        return _check_kept(job, bag, encoder)
    except DamagedBagError:
        tell(f"its bag '{bag.name}' could not be read and was made anew")
        return None
    except BagError:
        if job.overwrite:
            return None
        raise


def _check_kept(job: EmbedJob, path: Path, encoder: Encoder) -> KeptBag:
    """The bag that exists; BagError if this run would make another one."""
    with BagFile(path) as bag:
        n, info = bag.n, bag.info
        recorded = job.recorded_settings(info) | {"width": bag.width, "grid": bag.grid, "storage": bag.storage}
        required = job.required_settings(path, info)
    _check_settings(path, info, recorded, required | _of_encoder(encoder) | {"storage": job.storage})
    return KeptBag(n, (*_check_source(job, path, info), *_remarks_on(info, encoder), *job.remarks_on(info)))


def _of_encoder(encoder: Encoder) -> dict[str, Any]:
    return {
        "encoder": encoder.name,
        "encoder_digest": encoder.digest,
        "width": encoder.width,
        "grid": encoder.grid,
    }


def _check_settings(path: Path, info: BagInfo, recorded: dict[str, Any], required: dict[str, Any]) -> None:
    """Raise a BagError if a setting differs that the bag's format records."""
    different = [
        f"{name} {recorded.get(name)} instead of {value}"
        for name, value in required.items()
        if not _is_same(recorded.get(name), value, info.format)
    ]
    if different:
        raise BagError(
            f"bag '{path}': made with other settings ({'; '.join(different)}); "
            "choose another folder, or overwrite to make it anew"
        )


def _is_same(recorded: Any, value: Any, bag_format: int | None) -> bool:
    """Whether a setting is the one recorded; of format 1 only the parts count that both know."""
    if bag_format == 1 and isinstance(value, dict) and isinstance(recorded, dict):
        return all(recorded[name] == value[name] for name in recorded.keys() & value.keys())
    return bool(recorded == value)


def _check_source(job: EmbedJob, path: Path, info: BagInfo) -> tuple[str, ...]:
    """Raise a BagError if the bag is of other content than the job's slide or scan; remarks where nobody can tell."""
    case = job.kind.case
    if info.source is None:
        return (f"its bag is of format {info.format} and does not say of which {case} it was made: kept",)
    if not job.path.exists():
        return (f"the {case} is not there: its bag is kept, unchecked",)
    if info.source_stamp == change_stamp(job.touched_files()) or info.source == content_identity(job.source_files()):
        return ()
    made_of = info.slide_path or "unknown"
    if made_of == str(job.path.absolute()):
        raise BagError(
            f"bag '{path}': {case} '{job.path}' was replaced since its bag was made ({_bytes(info.source)} then); "
            "overwrite to make the bag anew"
        )
    raise BagError(
        f"bag '{path}': made of another {case} of the same name, '{made_of}', not of '{job.path}'; choose another "
        "folder, rename one of them, or overwrite to make the bag anew"
    )


def _bytes(source: str) -> str:
    return f"{source.partition(':')[0]} bytes"


def _remarks_on(info: BagInfo, encoder: Encoder) -> tuple[str, ...]:
    """What differs from a bag made today without making it another one."""
    remarks = []
    if info.encoder_dtype not in (None, number_type(encoder)):
        remarks.append(f"its bag was made in {info.encoder_dtype}, this run makes {number_type(encoder)}: kept")
    return tuple(remarks)


def number_type(encoder: Encoder) -> str:
    """The number type in which the encoder runs, for example ``"bfloat16"``."""
    return str(getattr(encoder, "dtype", "float32")).removeprefix("torch.")
