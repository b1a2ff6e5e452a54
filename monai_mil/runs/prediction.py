"""Running a prediction: what is done is kept, what fails is told, and a report is written."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_mil.embedding import CaseBars
from monai_mil.errors import BagError, OutputError, SetAsideError
from monai_mil.interrupts import at_hard_end
from monai_mil.leftovers import remove_leftovers
from monai_mil.locks import claimed
from monai_mil.names import file_stem
from monai_mil.runs.journal import Journal, settings_digest, source_digest
from monai_mil.runs.light_imports import import_monai_lightly
from monai_mil.runs.run import BundleRun, in_users_words

if TYPE_CHECKING:
    from ignite.engine import Engine
    from rich.console import Console

    from monai_mil.savers import CaseSaver

logger = logging.getLogger(__name__)

_JOURNAL, _LOG = "predict.jsonl", "predict.log"
MOST_DEATHS = 2
"""A case that took the process down so often, one time after the other, is set aside."""


@dataclass(frozen=True)
class Outcome:
    """What became of a prediction run.

    Attributes:
        out: its folder.
        found: how many cases there were.
        kept: how many of them an earlier run had done.
        failed: name and error of every case without a prediction, which ``failed.csv`` lists too.
        incomplete: name and error of every case that has one, but not all of its files.
        set_aside: how many of the failed took the process down with them before and were not tried again.
        report: the HTML report; None where nothing was predicted.
        note: what whoever reads the results must know of the model, see ``ModelCard.note``.
    """

    out: Path
    found: int
    kept: int
    failed: Mapping[str, str]
    incomplete: Mapping[str, str]
    set_aside: int
    report: Path | None
    note: str | None

    @property
    def is_whole(self) -> bool:
        """Whether every case has all its results."""
        return not self.failed and not self.incomplete


def predict(run: BundleRun, *, console: Console, overwrite: bool = False, retry: bool = False) -> Outcome:
    """Predict, go on where an earlier run with the same settings stopped, and write the report.

    Args:
        run: as ``predict_run`` gives it.
        console: where progress is shown.
        overwrite: begin anew whatever is there.
        retry: try cases again in which the process died twice, which are set aside.

    Returns:
        The outcome. A case that cannot be predicted is told in it and stops nobody else.

    Raises:
        MonaiMILError: nothing can be predicted: settings, weights, inputs; or another run is at work in its folder.
    """
    import_monai_lightly()
    out = Path(run.settings["output_dir"])
    remove_leftovers(out)
    with claimed(out / _JOURNAL), _logged(out / _LOG), in_users_words():
        workflow = run.workflow()
        workflow.initialize()
        content = workflow.parser.get_parsed_content
        dataset, evaluator = content("dataset"), content("evaluator")
        savers = _savers(content("handlers"))
        items = {_name(item): item for item in dataset.data}
        sources = _sources(run, items)
        config: Any = workflow.parser.config
        journal = Journal.open(out / _JOURNAL, settings_digest(config, Path(content("ckpt_path"))))
        if journal.remark is not None:
            logger.warning(journal.remark)
            console.print(journal.remark, markup=False, highlight=False)
        of_patients = any(isinstance(item["image"], list) for item in items.values())
        kept = {} if overwrite or of_patients else _still_done(journal, sources, savers, out, console)
        if retry:
            journal.deaths = dict.fromkeys(journal.deaths, 1)
        journal.begin(kept)
        waiting = [name for name in items if name not in kept]
        dataset.data = [items[name] for name in sorted(waiting, key=lambda name: journal.deaths.get(name, 0))]
        if journal.deaths:
            content("dataloader").num_workers = 0  # one case at a time, so that the right one is blamed
        reads, shown = run.bundle.reads, console.is_terminal
        bar = CaseBars(console, reads, len(items), done=len(kept), enabled=shown, instances=_INSTANCES[reads])
        _resume(evaluator, savers, kept, list(items))
        _note_done(evaluator, savers, journal, sources, bar)
        dataset.transform = _Announced(dataset.transform, bar, journal)
        with bar, _blaming_cases(journal):
            _run(workflow, evaluator, dataset, savers)
    failed = {failure.case_id: failure.message for failure in dataset.failures}
    incomplete = {name: message for saver in savers for name, message in saver.failures.items()}
    set_aside = sum(failure.status == SetAsideError.status for failure in dataset.failures)
    return Outcome(
        out, len(items), len(kept), failed, incomplete, set_aside, _report(run, out), content("trained").note
    )


_INSTANCES = {"slides": "tiles", "scans": "slices"}


def _run(workflow: Any, evaluator: Engine, dataset: Any, savers: Sequence[CaseSaver[Any]]) -> None:
    """Run; what a run that came to its end tells of single cases stops nothing, anything else is raised."""
    from ignite.engine import Events

    ended: list[bool] = []
    evaluator.add_event_handler(Events.COMPLETED, lambda: ended.append(True))  # after the savers have written
    try:
        workflow.run()
    except Exception:
        dataset.collect()
        if not ended or not (dataset.failures or any(saver.failures for saver in savers)):
            raise


def _savers(handlers: Sequence[Any]) -> list[CaseSaver[Any]]:
    from monai_mil.savers import CaseSaver

    return [handler for handler in handlers if isinstance(handler, CaseSaver)]


def _name(item: Mapping[str, Any]) -> str:
    """What a case of the data list is called: a slide, a scan, or a patient whose slides are one bag."""
    return str(item.get("scan_id") or item.get("slide_id") or item["patient_id"])


def _sources(run: BundleRun, items: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What each case is made of."""
    raw, scan = run.configs[-1] in ("inference_slides", "inference_scans"), run.bundle.reads == "scans"
    return {name: source_digest(item, raw=raw, scan=scan) for name, item in items.items()}


def _still_done(
    journal: Journal, sources: Mapping[str, str], savers: Sequence[CaseSaver[Any]], out: Path, console: Console
) -> dict[str, dict[str, Any]]:
    """Of the journal what holds today: cases of the same source whose heatmaps are there and can be read."""
    if not all(saver.resumable for saver in savers):
        return {}
    tables = {_key(saver) for saver in savers}
    done = {
        name: entry
        for name, source in sources.items()
        if (entry := journal.done.get(name)) is not None
        and entry["source"] == source
        and set(entry["kept"]) <= tables
        and all(_is_whole(out / file, console) for file in entry["files"])
    }
    if len(done) == len(sources):  # the tables are written at the end of a run that does something
        done.popitem()
    return done


def _is_whole(heatmap: Path, console: Console) -> bool:
    from monai_mil.heatmaps import load_heatmap

    if not heatmap.exists():
        return False
    try:
        load_heatmap(heatmap)
    except BagError as error:
        logger.warning("%s", error)
        console.print(f"heatmap '{heatmap.name}' cannot be read: it is made anew", markup=False, highlight=False)
        return False
    return True


def _resume(evaluator: Engine, savers: Sequence[CaseSaver[Any]], kept: Mapping[str, Any], names: Sequence[str]) -> None:
    """Begin the savers with what is kept, and let them end in the order of all cases."""
    from ignite.engine import Events

    def begin() -> None:
        for saver in savers:
            saver.restore(
                {name: entry["kept"][_key(saver)] for name, entry in kept.items() if _key(saver) in entry["kept"]}
            )

    def arrange() -> None:
        for saver in savers:
            saver.arrange(names)

    evaluator.add_event_handler(Events.STARTED, begin)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, arrange)


def _note_done(
    evaluator: Engine,
    savers: Sequence[CaseSaver[Any]],
    journal: Journal,
    sources: Mapping[str, str],
    bar: CaseBars,
) -> None:
    """After every case all of whose files are written, write it into the journal."""
    from ignite.engine import Events

    def note(engine: Engine) -> None:
        from monai_mil.savers import read_cases

        for case in read_cases(engine):
            bar.count()
            if any(case.name in saver.failures for saver in savers):
                journal.end(case.name)
                continue
            kept = {_key(saver): saver.kept[case.name] for saver in savers if case.name in saver.kept}
            journal.add(case.name, sources[case.name], kept, _heatmaps(journal.path.parent, case.name))

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, note)


def _heatmaps(out: Path, case: str) -> list[str]:
    """The heatmap files of a case, below the run's folder; a class's are called by it."""
    stem = file_stem(case)
    folder = out / "heatmaps"
    return (
        sorted(f"heatmaps/{path.name}" for path in folder.glob("*.h5") if path.stem == stem) if folder.is_dir() else []
    )


def _key(saver: CaseSaver[Any]) -> str:
    return type(saver).__name__


class _Announced:
    """A transform of cases that says which one it works on, and how far it is; the journal knows before it begins.

    Raises:
        SetAsideError: the process died in the case before, too often.
    """

    def __init__(self, transform: Any, bar: CaseBars, journal: Journal) -> None:
        self._transform, self._bar, self._journal = transform, bar, journal

    def __call__(self, item: Mapping[str, Any]) -> Any:
        from monai_mil.embedding import watched
        from monai_mil.training import users_error

        name = _name(item)
        deaths = self._journal.deaths.get(name, 0)
        if deaths >= MOST_DEATHS:
            raise SetAsideError(
                f"'{name}': set aside, for the process died {deaths} times while it worked on it (no memory left, a "
                "crash within a library, or somebody ended it); look at the file and the memory, then run again with "
                "--retry"
            )
        self._bar.start(name)
        self._journal.attempt(name)
        try:
            with watched(self._bar.advance):
                return self._transform(item)
        except Exception as error:
            if users_error(error) is not None:
                self._journal.end(name)
            raise


@contextmanager
def _blaming_cases(journal: Journal) -> Iterator[None]:
    """Blame no case for an interruption, or for an error that is told."""
    from monai_mil.training import users_error

    try:
        with at_hard_end(journal.withdraw):
            yield
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt) or users_error(error) is not None:
            journal.withdraw()
        raise


def _report(run: BundleRun, out: Path) -> Path | None:
    table = out / "predictions.csv"
    if not table.is_file():
        return None
    from monai_mil.reports import write_report

    settings = {"bundle": run.bundle.name}
    return write_report(table, out / "heatmaps", out / "report.html", settings=settings)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write what is logged meanwhile into a file, and nothing of it onto the screen."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"'{path}' cannot be written: {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        root.setLevel(level)
        handler.close()
