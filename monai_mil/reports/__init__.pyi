from .cohort import write_report
from .survival import write_survival_report

__all__ = [
    "write_report",
    "write_survival_report",
]
