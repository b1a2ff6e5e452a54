from .competitor import Competitor, read_competitors
from .job import Job
from .models import trained_models
from .plan import Plan, make_plan
from .results import MethodResults, RunResult, read_results
from .run import compare
from .table import Row, make_rows

__all__ = [
    "Competitor",
    "Job",
    "MethodResults",
    "Plan",
    "Row",
    "RunResult",
    "compare",
    "make_plan",
    "make_rows",
    "read_competitors",
    "read_results",
    "trained_models",
]
