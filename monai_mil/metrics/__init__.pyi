from .bootstrap import Interval, bootstrap_ci
from .classification import accuracy, auroc, balanced_accuracy, macro_f1
from .curves import Calibration, RocCurve, calibration, roc_curve
from .handlers import AUROC
from .instances import instance_auroc
from .report import classification_report
from .report_saver import ReportSaver

__all__ = [
    "AUROC",
    "Calibration",
    "Interval",
    "ReportSaver",
    "RocCurve",
    "accuracy",
    "auroc",
    "balanced_accuracy",
    "bootstrap_ci",
    "calibration",
    "classification_report",
    "instance_auroc",
    "macro_f1",
    "roc_curve",
]
