"""The steps of a job as operators of MONAI Deploy. Needs its SDK: scripts/setup.sh deploy.

An operator that raises, or emits nothing, ends an application with a log of holoscan's own or with no word at all; so
an error is a value here, which the following operators pass on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, Operator, OperatorSpec

from monai_mil.deploy.job import Job
from monai_mil.deploy.runner import Steps

_IN, _OUT = "given", "gives"


@dataclass(frozen=True, eq=False)
class Failure:
    """What a step gives that has failed."""

    error: Exception


class StepOperator(Operator):
    """An operator that takes a value, does one step, and gives what comes of it.

    Args:
        fragment: the application.
        step: what it does with the value.
    """

    def __init__(self, fragment: Application, *args: Any, step: Callable[[Any], Any], **kwargs: Any) -> None:
        self.step = step
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """See holoscan."""
        spec.input(_IN)
        spec.output(_OUT)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """See holoscan."""
        given = op_input.receive(_IN)
        op_output.emit(given if isinstance(given, Failure) else attempted(lambda: self.step(given)), _OUT)


class SourceOperator(Operator):
    """The first operator: finds what is read, once.

    Args:
        fragment: the application.
        step: finds it.
    """

    def __init__(self, fragment: Application, *args: Any, step: Callable[[], Any], **kwargs: Any) -> None:
        self.step = step
        super().__init__(fragment, CountCondition(fragment, 1), *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """See holoscan."""
        spec.output(_OUT)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """See holoscan."""
        op_output.emit(attempted(self.step), _OUT)


class SeriesOperator(SourceOperator):
    """Finds the CT series to read."""


class SlideOperator(SourceOperator):
    """Finds the slide to read."""


class BundleOperator(StepOperator):
    """Has the bundle answer."""


class ResultsOperator(StepOperator):
    """Lays the results down; the last operator.

    Attributes:
        given: what came of the job, a folder or a :class:`Failure`; None until it has run.
    """

    given: Path | Failure | None = None

    def setup(self, spec: OperatorSpec) -> None:
        """See holoscan."""
        spec.input(_IN)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """See holoscan."""
        given = op_input.receive(_IN)
        self.given = given if isinstance(given, Failure) else attempted(lambda: self.step(given))


class MilApplication(Application):
    """Source, bundle, results, one after the other.

    Args:
        steps: what the operators do.
    """

    source: type[SourceOperator]

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.results: ResultsOperator | None = None
        super().__init__([])

    def compose(self) -> None:
        """See holoscan."""
        source = self.source(self, step=self.steps.select, name="source")
        bundle = BundleOperator(self, step=self.steps.predict, name="bundle")
        self.results = ResultsOperator(self, step=self.steps.deliver, name="results")
        self.add_flow(source, bundle, {(_OUT, _IN)})
        self.add_flow(bundle, self.results, {(_OUT, _IN)})


class CtApplication(MilApplication):
    """Reads CT series."""

    source = SeriesOperator


class SlideApplication(MilApplication):
    """Reads whole-slide images."""

    source = SlideOperator


APPLICATIONS = {"ct": CtApplication, "slide": SlideApplication}


def execute(job: Job, steps: Steps) -> Path | None:
    """Run the application of a job's modality; see :class:`monai_mil.deploy.runner.Execute`."""
    application = APPLICATIONS[job.modality](steps)
    application.run()
    given = None if application.results is None else application.results.given
    if isinstance(given, Failure):
        raise given.error
    return given


def attempted(step: Callable[[], Any]) -> Any:
    """What a step gives, or the :class:`Failure` that it ends in."""
    try:
        return step()
    except Exception as error:
        return Failure(error)
