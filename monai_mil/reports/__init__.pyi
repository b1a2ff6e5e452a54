from .cohort import write_report
from .comparison import ComparedMethod, write_comparison
from .survival import write_survival_report

__all__ = [
    "ComparedMethod",
    "write_comparison",
    "write_report",
    "write_survival_report",
]
