from .colours import Colouring, colour_table
from .curve import export_curve
from .dice import SlideDice, dice_counts, slide_dice
from .dice_saver import DiceSaver
from .geojson import export_geojson
from .heatmap import (
    Heatmap,
    SlideFrame,
    assemble,
    percentile_ranks,
)
from .localisation import localise
from .localisation_saver import LocalisationSaver
from .mask import export_mask
from .montage import export_montage
from .nifti import export_nifti, export_nifti_mask
from .png import export_png
from .report import write_report
from .risk_saver import RiskSaver
from .savers import HeatmapSaver, PredictionSaver
from .scan_heatmap import ScanHeatmap, load_heatmap
from .slice_saver import SliceSaver
from .stitch import TokenCanvas, stitch
from .survival_report import write_survival_report
from .threshold import otsu
from .tiff import export_tiff
from .tree_saver import TreeHeatmapSaver

__all__ = [
    "Colouring",
    "DiceSaver",
    "Heatmap",
    "HeatmapSaver",
    "LocalisationSaver",
    "PredictionSaver",
    "RiskSaver",
    "ScanHeatmap",
    "SliceSaver",
    "SlideDice",
    "SlideFrame",
    "TokenCanvas",
    "TreeHeatmapSaver",
    "assemble",
    "colour_table",
    "dice_counts",
    "export_curve",
    "export_geojson",
    "export_mask",
    "export_montage",
    "export_nifti",
    "export_nifti_mask",
    "export_png",
    "export_tiff",
    "load_heatmap",
    "localise",
    "otsu",
    "percentile_ranks",
    "slide_dice",
    "stitch",
    "write_report",
    "write_survival_report",
]
