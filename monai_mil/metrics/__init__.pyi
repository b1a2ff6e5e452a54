from .attention_stability import EpochStability, effective_tiles, jensen_shannon
from .attention_stability_handler import AttentionStability
from .bootstrap import Interval, bootstrap_ci
from .classification import accuracy, auprc, auroc, balanced_accuracy, macro_f1
from .concordance import concordance_index
from .curves import Calibration, RocCurve, calibration, roc_curve
from .dice import DiceCounts, LesionDice, dice_summary, lesion_dice, lesion_size, paired_permutation_test
from .handlers import AUROC, F1AUROC, MacroF1
from .instance_handler import InstanceAUROC
from .instances import instance_auroc
from .lesion_froc import Froc, FrocSlide, detect, froc, froc_slide
from .log_loss import LogLoss
from .operating_point import OperatingPoint, decisions, operating_point, operating_points, read_operating_points
from .operating_point_saver import OperatingPointSaver
from .report import classification_report
from .report_saver import ReportSaver
from .slice_report_saver import SliceReportSaver
from .slices import SliceFigure, SliceReport, centre_scores, slice_metrics
from .stability_chart import draw_stability
from .survival import KaplanMeier, LogRank, kaplan_meier, log_rank, risk_groups, survival_report
from .survival_saver import ConcordanceIndex, SurvivalSaver
from .tile_localisation import LocalisedSlide, localisation_report, rescaled, tile_figures

__all__ = [
    "AUROC",
    "F1AUROC",
    "AttentionStability",
    "Calibration",
    "ConcordanceIndex",
    "DiceCounts",
    "EpochStability",
    "Froc",
    "FrocSlide",
    "InstanceAUROC",
    "Interval",
    "KaplanMeier",
    "LesionDice",
    "LocalisedSlide",
    "LogLoss",
    "LogRank",
    "MacroF1",
    "OperatingPoint",
    "OperatingPointSaver",
    "ReportSaver",
    "RocCurve",
    "SliceFigure",
    "SliceReport",
    "SliceReportSaver",
    "SurvivalSaver",
    "accuracy",
    "auprc",
    "auroc",
    "balanced_accuracy",
    "bootstrap_ci",
    "calibration",
    "centre_scores",
    "classification_report",
    "concordance_index",
    "decisions",
    "detect",
    "dice_summary",
    "draw_stability",
    "effective_tiles",
    "froc",
    "froc_slide",
    "instance_auroc",
    "jensen_shannon",
    "kaplan_meier",
    "lesion_dice",
    "lesion_size",
    "localisation_report",
    "log_rank",
    "macro_f1",
    "operating_point",
    "operating_points",
    "paired_permutation_test",
    "read_operating_points",
    "rescaled",
    "risk_groups",
    "roc_curve",
    "slice_metrics",
    "survival_report",
    "tile_figures",
]
