from .attention_stability import AttentionStability
from .dice import DiceSaver
from .heatmaps import HeatmapSaver, PredictionSaver
from .instance_metrics import InstanceAUROC
from .localisation import LocalisationSaver
from .operating_point import OperatingPointSaver
from .report import ReportSaver
from .risks import RiskSaver
from .slice_report import SliceReportSaver
from .slices import SliceSaver
from .stability_chart import draw_stability
from .survival import ConcordanceIndex, SurvivalSaver
from .trees import TreeHeatmapSaver

__all__ = [
    "AttentionStability",
    "ConcordanceIndex",
    "DiceSaver",
    "HeatmapSaver",
    "InstanceAUROC",
    "LocalisationSaver",
    "OperatingPointSaver",
    "PredictionSaver",
    "ReportSaver",
    "RiskSaver",
    "SliceReportSaver",
    "SliceSaver",
    "SurvivalSaver",
    "TreeHeatmapSaver",
    "draw_stability",
]
