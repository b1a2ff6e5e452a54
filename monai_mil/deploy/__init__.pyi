from .command import main
from .job import DeployConf, Exit, Job, JobError, exit_code_of
from .logs import ALLOW, Redaction
from .process import cuda_runtime, prepare_process
from .runner import Steps, in_order, run_job
from .selection import Source, choose_series, find_scan, find_slide
from .stage import stage_application

__all__ = [
    "ALLOW",
    "DeployConf",
    "Exit",
    "Job",
    "JobError",
    "Redaction",
    "Source",
    "Steps",
    "choose_series",
    "cuda_runtime",
    "exit_code_of",
    "find_scan",
    "find_slide",
    "in_order",
    "main",
    "prepare_process",
    "run_job",
    "stage_application",
]
