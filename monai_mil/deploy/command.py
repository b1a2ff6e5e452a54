"""The command of the applications: ``python -m monai_mil.deploy ct -i IN -o OUT -m BUNDLE``."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from monai_mil.deploy.job import READS, Exit, Job, JobError
from monai_mil.deploy.logs import ALLOW, Redaction, logged, may_name_patients, told
from monai_mil.deploy.process import prepare_process
from monai_mil.deploy.runner import Steps, run_job
from monai_mil.runs import import_monai_lightly

logger = logging.getLogger(__name__)

_PLACES = (
    ("-i", "--input", "HOLOSCAN_INPUT_PATH", "input", "folder, or file, of what is read"),
    ("-o", "--output", "HOLOSCAN_OUTPUT_PATH", "output", "folder of the results; what an earlier job left there goes"),
    ("-m", "--model", "HOLOSCAN_MODEL_PATH", "models", "bundle, or folder with one"),
)
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an application of MONAI Deploy on one input.

    Args:
        arguments: the command line; default the process's own.

    Returns:
        The exit code, see :class:`monai_mil.deploy.Exit`.
    """
    parser = argparse.ArgumentParser("python -m monai_mil.deploy", description=__doc__)
    parser.add_argument("application", choices=tuple(READS), help="what is read: a CT series, or a slide")
    for short, long, variable, default, meaning in _PLACES:
        parser.add_argument(
            short,
            long,
            type=Path,
            default=Path(os.environ.get(variable) or default),
            help=f"{meaning} (default: {variable}, else '{default}')",
        )
    parser.add_argument("-l", "--log-level", type=str.upper, choices=_LEVELS, default="INFO")
    given = parser.parse_args(arguments)
    if given.log_level == "DEBUG" and not may_name_patients():
        parser.error(f"DEBUG may log patient data: set {ALLOW}=1 if that may be")
    job = Job(given.application, given.input.absolute(), given.output.absolute(), given.model)
    redaction = Redaction(job.source)
    with logged(redaction, given.log_level):
        try:
            return int(run_job(job, by_monai_deploy, redaction))
        except Exception as error:  # its traceback would quote whatever it is about
            logger.error("%s", told(error, redaction))
            return int(Exit.INFERENCE)


def by_monai_deploy(job: Job, steps: Steps) -> Path | None:
    """Run the steps of a job as an application of MONAI Deploy; see :class:`monai_mil.deploy.runner.Execute`.

    Raises:
        JobError: its SDK is not here.
    """
    prepare_process()
    try:
        import_monai_lightly()
        from monai_mil.deploy.operators import execute
    except ImportError as error:
        raise JobError(Exit.USAGE, f"MONAI Deploy is not here ({error}): run scripts/setup.sh deploy") from error
    return execute(job, steps)
