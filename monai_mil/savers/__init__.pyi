from .attention_stability import AttentionStability
from .base import CaseSaver
from .case import Case, read_cases, read_items
from .dice import DiceSaver
from .dicom_formats import dicom_findings
from .heatmaps import HeatmapSaver
from .instance_metrics import InstanceAUROC
from .label_map import ScanLabelMapd
from .localisation import LocalisationSaver
from .operating_point import OperatingPointSaver
from .patients import PatientSaver
from .prediction import Prediction, read_prediction
from .predictions import PredictionSaver
from .report import ReportSaver
from .risks import PatientRiskSaver, RiskSaver
from .scan_dice import ScanDiceSaver
from .scores import read_scores
from .slice_report import SliceReportSaver
from .slices import SliceSaver
from .stability_chart import draw_stability
from .survival import ConcordanceIndex, SurvivalSaver
from .tables import TableSaver
from .trees import TreeHeatmapSaver

__all__ = [
    "AttentionStability",
    "Case",
    "CaseSaver",
    "ConcordanceIndex",
    "DiceSaver",
    "HeatmapSaver",
    "InstanceAUROC",
    "LocalisationSaver",
    "OperatingPointSaver",
    "PatientRiskSaver",
    "PatientSaver",
    "Prediction",
    "PredictionSaver",
    "ReportSaver",
    "RiskSaver",
    "ScanDiceSaver",
    "ScanLabelMapd",
    "SliceReportSaver",
    "SliceSaver",
    "SurvivalSaver",
    "TableSaver",
    "TreeHeatmapSaver",
    "dicom_findings",
    "draw_stability",
    "read_cases",
    "read_items",
    "read_prediction",
    "read_scores",
]
