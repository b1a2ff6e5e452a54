"""A bundle's answer to one series or slide: the very run that ``monai.bundle run`` would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_mil.deploy.job import DeployConf, Exit, JobError
from monai_mil.deploy.selection import Source
from monai_mil.errors import (
    CohortError,
    DicomError,
    NoLungsError,
    NoTissueError,
    OutputError,
    ScanReadError,
    SettingsError,
)
from monai_mil.runs import Bundle, BundleRun, import_monai_lightly, in_users_words, predict_run

if TYPE_CHECKING:
    from monai_mil.savers import Prediction

CASE = "case"
"""What the series or slide is called in the run: its own name might be the patient's."""
_CODED = {"sr", "seg", "fractional", "pm", "ann"}
_UNSUITABLE = {NoLungsError.status, NoTissueError.status}
_UNREADABLE = {ScanReadError.status}


@dataclass(frozen=True, eq=False)
class Answer:
    """What a bundle says of a series or slide.

    Attributes:
        prediction: the classes' probabilities and what is called.
        model: digest of the weights.
        note: what whoever reads the answer must know of the model, or None.
        rule: how the operating points were chosen; None where there are none, or nobody says.
        folder: the run's files.
    """

    prediction: Prediction
    model: str
    note: str | None
    rule: str | None
    folder: Path


def run_of(bundle: Bundle, conf: DeployConf, source: Source, folder: Path, formats: Sequence[str]) -> BundleRun:
    """The run of the bundle on one series or slide.

    Args:
        bundle: whose network answers.
        conf: the bundle's.
        source: what is read.
        folder: where the run writes.
        formats: of heatmaps and DICOM objects.
    """
    settings: dict[str, Any] = {**conf.settings, "datalist": [source.item(CASE)]}
    if conf.operating_points is not None:
        settings["operating_points"] = list(conf.operating_points)
    if conf.terms:
        saver = "slice_saver" if bundle.reads == "scans" else "heatmap_saver"
        coded = {"_target_": "monai_mil.dicom.Terms", **conf.terms}
        settings[f"{saver}::options"] = {form: {"terms": coded} for form in formats if form in _CODED}
    return predict_run(bundle, [source.place], folder, heatmaps=formats, settings=settings)


def answer(run: BundleRun) -> Answer:
    """Run it.

    Args:
        run: as :func:`run_of` gives it.

    Raises:
        JobError: the source cannot be read, is not what the bundle is for, or a result cannot be written.
        MonaiMILError: the bundle, its settings or its weights cannot be used.
    """
    import_monai_lightly()
    from ignite.engine import Events

    from monai_mil.savers import Case, read_cases, read_prediction

    cases: list[Case] = []
    with in_users_words():
        workflow = run.workflow()
        workflow.initialize()
        content = workflow.parser.get_parsed_content
        card, evaluator, dataset = content("trained"), content("evaluator"), content("dataset")
        if card.get("time_edges"):
            raise SettingsError(f"bundle '{run.bundle.name}' predicts survival: no application reports that")
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: cases.extend(read_cases(engine)))
        try:
            workflow.run()
        except Exception:
            if not dataset.failures and not _failures(content("handlers")):
                raise
    for failed in dataset.failures:
        raise JobError(_cause(failed.status), failed.message)
    for statuses, message in _failures(content("handlers")):
        raise JobError(_cause_of_loss(statuses), message)
    if len(cases) != 1:
        raise JobError(Exit.INFERENCE, f"the bundle gave {len(cases)} answers, not one")
    points = _optional(workflow, "operating_points")
    prediction = read_prediction(cases[0], content("class_names"), bool(_optional(workflow, "multi_label")), points)
    return Answer(
        prediction,
        card.weights or "",
        card.note,
        None if points is None or card.operating_point_rule is None else str(card.operating_point_rule),
        Path(run.settings["output_dir"]),
    )


def _cause(status: str) -> Exit:
    if status in _UNSUITABLE:
        return Exit.NO_INPUT
    if status == OutputError.status:
        return Exit.OUTPUT
    return Exit.INVALID_INPUT if status in _UNREADABLE else Exit.INFERENCE


def _cause_of_loss(statuses: set[str]) -> Exit:
    """Why a result is not there, of the errors of those that should have written it."""
    if statuses == {DicomError.status}:
        return Exit.INVALID_INPUT
    return Exit.USAGE if statuses <= {CohortError.status, SettingsError.status} else Exit.OUTPUT


def _failures(handlers: Sequence[Any]) -> list[tuple[set[str], str]]:
    """What savers could not write: the kinds of errors, and the text."""
    from monai_mil.savers import CaseSaver

    savers = [handler for handler in handlers if isinstance(handler, CaseSaver)]
    return [(saver.statuses[name], message) for saver in savers for name, message in saver.failures.items()]


def _optional(workflow: Any, name: str) -> Any:
    return workflow.parser.get_parsed_content(name) if name in workflow.parser.config else None
