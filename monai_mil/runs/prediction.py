"""Running a prediction: what is done is kept, what fails is told, and a report is written."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_mil.errors import BagError, OutputError
from monai_mil.locks import claimed
from monai_mil.names import file_stem
from monai_mil.runs.journal import Journal, settings_digest, source_digest
from monai_mil.runs.light_imports import import_monai_lightly
from monai_mil.runs.progress import PredictProgress
from monai_mil.runs.run import BundleRun

if TYPE_CHECKING:
    from ignite.engine import Engine
    from rich.console import Console

    from monai_mil.savers import CaseSaver

logger = logging.getLogger(__name__)

_JOURNAL, _LOG = "predict.jsonl", "predict.log"


@dataclass(frozen=True)
class Outcome:
    """What became of a prediction run.

    Attributes:
        out: its folder.
        found: how many cases there were.
        kept: how many of them an earlier run had done.
        failed: name and error of every case without a prediction, which ``failed.csv`` lists too.
        incomplete: name and error of every case that has one, but not all of its files.
        report: the HTML report; None where nothing was predicted.
        note: what whoever reads the results must know of the model, see ``ModelCard.note``.
    """

    out: Path
    found: int
    kept: int
    failed: Mapping[str, str]
    incomplete: Mapping[str, str]
    report: Path | None
    note: str | None

    @property
    def is_whole(self) -> bool:
        """Whether every case has all its results."""
        return not self.failed and not self.incomplete


def predict(run: BundleRun, *, console: Console, overwrite: bool = False) -> Outcome:
    """Predict, go on where an earlier run with the same settings stopped, and write the report.

    Args:
        run: as ``predict_run`` gives it.
        console: where progress is shown.
        overwrite: begin anew whatever is there.

    Returns:
        The outcome. A case that cannot be predicted is told in it and stops nobody else.

    Raises:
        MonaiMILError: nothing can be predicted: settings, weights, inputs; or another run is at work in its folder.
    """
    import_monai_lightly()
    out = Path(run.settings["output_dir"])
    with claimed(out / _JOURNAL), _logged(out / _LOG), _users_error():
        workflow = run.workflow()
        workflow.initialize()
        content = workflow.parser.get_parsed_content
        dataset, evaluator = content("dataset"), content("evaluator")
        savers = _savers(content("handlers"))
        items = {_name(item): item for item in dataset.data}
        sources = _sources(run, items)
        config: Any = workflow.parser.config
        journal = Journal.open(out / _JOURNAL, settings_digest(config, Path(content("ckpt_path"))))
        of_patients = any(isinstance(item["image"], list) for item in items.values())
        kept = {} if overwrite or of_patients else _still_done(journal, sources, savers, out, console)
        journal.begin(kept)
        dataset.data = [item for name, item in items.items() if name not in kept]
        bar = PredictProgress(console, run.bundle.reads, _INSTANCES[run.bundle.reads], len(items), len(kept))
        _resume(evaluator, savers, kept, list(items))
        _note_done(evaluator, savers, journal, sources, bar)
        dataset.transform = _Announced(dataset.transform, bar)
        with bar:
            _run(workflow, dataset, savers)
    failed = {failure.case_id: failure.message for failure in dataset.failures}
    incomplete = {name: message for saver in savers for name, message in saver.failures.items()}
    return Outcome(out, len(items), len(kept), failed, incomplete, _report(run, out), content("trained").note)


_INSTANCES = {"slides": "tiles", "scans": "slices"}


def _run(workflow: Any, dataset: Any, savers: Sequence[CaseSaver[Any]]) -> None:
    """Run, and let what is told of single cases stop nothing; anything else is raised."""
    try:
        workflow.run()
    except Exception:
        dataset.collect()
        if not dataset.failures and not any(saver.failures for saver in savers):
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
    bar: PredictProgress,
) -> None:
    """After every case all of whose files are written, write it into the journal."""
    from ignite.engine import Events

    def note(engine: Engine) -> None:
        from monai_mil.savers import read_cases

        for case in read_cases(engine):
            bar.finish()
            if any(case.name in saver.failures for saver in savers):
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
    """A transform of cases that says which one it works on, and how far it is."""

    def __init__(self, transform: Any, bar: PredictProgress) -> None:
        self._transform, self._bar = transform, bar

    def __call__(self, item: Mapping[str, Any]) -> Any:
        from monai_mil.embedding import watched

        self._bar.start(_name(item))
        with watched(self._bar.advance):
            return self._transform(item)


def _report(run: BundleRun, out: Path) -> Path | None:
    table = out / "predictions.csv"
    if not table.is_file():
        return None
    from monai_mil.reports import write_report

    settings = {"bundle": run.bundle.name}
    return write_report(table, out / "heatmaps", out / "report.html", settings=settings)


@contextmanager
def _users_error() -> Iterator[None]:
    """Raise the user's own error where MONAI has wrapped it."""
    try:
        yield
    except Exception as error:
        from monai_mil.training import users_error

        own = users_error(error)
        if own is None or own is error:
            raise
        raise own from None


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
