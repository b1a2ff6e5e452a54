from .bootstrap import Interval, bootstrap_ci
from .classification import accuracy, auprc, auroc, balanced_accuracy, macro_f1
from .curves import Calibration, RocCurve, calibration, roc_curve
from .handlers import AUROC
from .instance_handler import InstanceAUROC
from .instances import instance_auroc
from .log_loss import LogLoss
from .operating_point import OperatingPoint, decisions, operating_point, operating_points
from .operating_point_saver import OperatingPointSaver
from .report import classification_report
from .report_saver import ReportSaver
from .slice_report_saver import SliceReportSaver
from .slices import SliceFigure, SliceReport, centre_scores, slice_metrics

__all__ = [
    "AUROC",
    "Calibration",
    "InstanceAUROC",
    "Interval",
    "LogLoss",
    "OperatingPoint",
    "OperatingPointSaver",
    "ReportSaver",
    "RocCurve",
    "SliceFigure",
    "SliceReport",
    "SliceReportSaver",
    "accuracy",
    "auprc",
    "auroc",
    "balanced_accuracy",
    "bootstrap_ci",
    "calibration",
    "centre_scores",
    "classification_report",
    "decisions",
    "instance_auroc",
    "macro_f1",
    "operating_point",
    "operating_points",
    "roc_curve",
    "slice_metrics",
]
