"""What every handler shares that reads the cases of an evaluation and writes files."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import ignite.distributed as idist
from ignite.engine import Engine, Events

from monai_mil.errors import CohortError, MonaiMILError
from monai_mil.locks import Claim
from monai_mil.model_card import network_digest, note_on
from monai_mil.savers.case import Case, read_cases
from monai_mil.savers.gather import gather_cases

logger = logging.getLogger(__name__)

Kept = TypeVar("Kept")


class CaseSaver(ABC, Generic[Kept]):
    """Collects every case of an evaluation once, gathers what all processes collected, and writes it at the end.

    A subclass says in :meth:`_collect` what it keeps of a case and writes it, in the first process only, in
    :meth:`_write`. A case that comes twice, as a sampler of several processes may repeat it, counts once. One that
    cannot be collected stops the evaluation, unless the subclass names its ``product``: then it is logged, kept in
    ``failures`` by its name, and told again at the end; the others go on.

    While it collects, no other run can write the same files: that is told, with the run that does, and stopped.
    What an earlier run wrote in its place is removed when a new one begins: no result of another model stands for a
    run that did not come to its end.

    Attributes:
        statuses: of this process's failures the ``status`` of every error, by the case's name.
        product: what is missing of a case that fails, for messages ("heatmap"); None stops at the first failure.
        failed_text: how many have failed, with ``{count}`` ("heatmaps of {count} slides failed"), for the error.
        missing_text: likewise for the log at the end ("no complete heatmap of {count} slides").
        by_slide: whether the slides or scans of a patient's bag come one by one, as whatever has a place in a slide is
            written; else the patient is one case.
        resumable: whether what is kept of a case can be written as JSON, so that a later run can go on with it.
        begins: the engine's event at which a new collection begins.
        ends: the one at which it is written.
        model_digest: digest of the network's weights (``model_card.weights_digest``), from the first case on.
    """

    product: ClassVar[str | None] = None
    failed_text: ClassVar[str] = ""
    missing_text: ClassVar[str] = ""
    by_slide: ClassVar[bool] = False
    resumable: bool = False
    begins: ClassVar[Events] = Events.STARTED
    ends: ClassVar[Events] = Events.COMPLETED

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        self.statuses: dict[str, set[str]] = {}
        self.model_digest: str | None = None
        self._kept: dict[str, Kept] = {}
        self._claims: list[Claim] = []

    def _results(self) -> tuple[Path, ...]:
        """The files that are this run's alone."""
        return ()

    def attach(self, engine: Engine) -> None:
        """Collect at every iteration of ``engine`` and write at its end."""
        engine.add_event_handler(self.begins, lambda _: self._begin())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(self.ends, self._finish)
        engine.add_event_handler(self.ends, lambda _: self._release())

    def __call__(self, engine: Engine) -> None:
        """Collect the cases of the engine's current iteration."""
        if self.model_digest is None:
            self.model_digest = network_digest(getattr(engine, "network", None))
        for case in self._read(engine):
            try:
                kept = self._collect(case)
            except Exception as error:
                if self.product is None:
                    raise
                self._fail(case.name, error)
                continue
            if kept is not None:
                self._keep(case.name, kept)

    @property
    def kept(self) -> Mapping[str, Kept]:
        """What this process keeps of the cases so far, by their names."""
        return self._kept

    def restore(self, kept: Mapping[str, Kept]) -> None:
        """Take what an earlier, interrupted run kept; call it after the engine's start."""
        for name, value in kept.items():
            self._keep(name, value)

    def arrange(self, names: Sequence[str]) -> None:
        """Write cases in the order of ``names``, whatever order they came in."""
        self._kept = {name: self._kept[name] for name in (*names, *self._kept) if name in self._kept}

    def raise_failures(self) -> None:
        """Raise a CohortError that names every case that failed, if any."""
        if self.failures:
            listed = "\n  ".join(self.failures.values())
            failed = self.failed_text.format(count=len(self.failures))
            raise CohortError(f"{failed}, the others are done:\n  {listed}")

    @abstractmethod
    def _collect(self, case: Case) -> Kept | None:
        """What is kept of a case until the end; it travels between processes. None keeps nothing."""

    @abstractmethod
    def _write(self, kept: Mapping[str, Kept], engine: Engine) -> None:
        """Write what was kept of the cases of all processes, by their names, in the order in which they came."""

    def _read(self, engine: Engine) -> Iterator[Case]:
        for case in read_cases(engine):
            yield from case.slides() if self.by_slide else [case]

    def _keep(self, name: str, kept: Kept) -> None:
        self._kept[name] = kept

    def _fail(self, name: str, error: Exception, part: str = "") -> None:
        """Note that a case, or a ``part`` of its product, could not be made."""
        message = f"{name} ({part}): {error}" if part else f"{name}: {error}"
        logger.error("%s of %s", self.product, message)
        self.failures[name] = "\n  ".join(filter(None, [self.failures.get(name), message]))
        self.statuses.setdefault(name, set()).add(getattr(error, "status", MonaiMILError.status))

    def _begin(self) -> None:
        self.failures, self.statuses, self._kept, self.model_digest = {}, {}, {}, None
        if idist.get_rank() == 0:
            self._claim()
            for path in self._results():
                path.unlink(missing_ok=True)

    def _claim(self) -> None:
        """Keep other runs from the files of this one, until it has written them or its process ends."""
        self._release()
        for path in self._results():
            claim = Claim(path)
            claim.take()
            self._claims.append(claim)

    def _release(self) -> None:
        while self._claims:
            self._claims.pop().release()

    def _finish(self, engine: Engine) -> None:
        kept = self.gathered(self._kept)
        self.failures = self.gathered(self.failures)
        if idist.get_rank() == 0:
            self._write(kept, engine)
            if self.failures:
                missing = self.missing_text.format(count=len(self.failures))
                logger.error("%s: %s", missing, ", ".join(self.failures))

    def signed(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """A report that says of which weights it is, and what must be known of them, where that is known."""
        return {**report, **self.signature}

    @property
    def signature(self) -> dict[str, str]:
        """The weights' digest as ``model``, and as ``note`` what whoever reads a result must know of them."""
        known = {"model": self.model_digest, "note": note_on(self.model_digest)}
        return {name: value for name, value in known.items() if value is not None}

    @staticmethod
    def gathered(own: Mapping[str, Any]) -> dict[str, Any]:
        """Entries by the cases' names, of all processes."""
        return dict(gather_cases(list(own.items())))
