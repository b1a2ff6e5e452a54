from .attention_stability import EpochStability, effective_tiles, jensen_shannon, pack_attention, unpack_attention
from .bootstrap import Interval, bootstrap_ci
from .classification import Array, Metric, accuracy, auprc, auroc, balanced_accuracy, macro_f1, missing_from_mean
from .concordance import concordance_index
from .curves import Calibration, RocCurve, calibration, roc_curve
from .delong import AurocCovariance, auroc_covariance
from .dice import SIZE_BOUNDS, DiceCounts, LesionDice, dice_summary, lesion_dice, lesion_size, paired_permutation_test
from .fold_answers import FoldAnswers, fold_difference, fold_figure, pooled
from .fold_tests import delong_test, holm, swap_test
from .handlers import AUROC, F1AUROC, MacroF1, pred_and_label
from .instances import instance_auroc
from .lesion_froc import Froc, FrocSlide, froc, froc_slide, non_maximum_suppression
from .log_loss import LogLoss
from .report import classification_report
from .slices import SliceFigure, SliceReport, centre_scores, slice_metrics
from .survival import KaplanMeier, LogRank, group_names, kaplan_meier, log_rank, risk_groups, survival_report
from .thresholds import OperatingPoint, Rule, decisions, operating_point, operating_points, read_operating_points
from .tile_localisation import LocalisedSlide, localisation_report, scaled_to_unit, tile_figures

__all__ = [
    "AUROC",
    "F1AUROC",
    "SIZE_BOUNDS",
    "Array",
    "AurocCovariance",
    "Calibration",
    "DiceCounts",
    "EpochStability",
    "FoldAnswers",
    "Froc",
    "FrocSlide",
    "Interval",
    "KaplanMeier",
    "LesionDice",
    "LocalisedSlide",
    "LogLoss",
    "LogRank",
    "MacroF1",
    "Metric",
    "OperatingPoint",
    "RocCurve",
    "Rule",
    "SliceFigure",
    "SliceReport",
    "accuracy",
    "auprc",
    "auroc",
    "auroc_covariance",
    "balanced_accuracy",
    "bootstrap_ci",
    "calibration",
    "centre_scores",
    "classification_report",
    "concordance_index",
    "decisions",
    "delong_test",
    "dice_summary",
    "effective_tiles",
    "fold_difference",
    "fold_figure",
    "froc",
    "froc_slide",
    "group_names",
    "holm",
    "instance_auroc",
    "jensen_shannon",
    "kaplan_meier",
    "lesion_dice",
    "lesion_size",
    "localisation_report",
    "log_rank",
    "macro_f1",
    "missing_from_mean",
    "non_maximum_suppression",
    "operating_point",
    "operating_points",
    "pack_attention",
    "paired_permutation_test",
    "pooled",
    "pred_and_label",
    "read_operating_points",
    "risk_groups",
    "roc_curve",
    "scaled_to_unit",
    "slice_metrics",
    "survival_report",
    "swap_test",
    "tile_figures",
    "unpack_attention",
]
