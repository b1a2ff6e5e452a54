from .colours import Colouring, colour_table
from .geojson import export_geojson
from .heatmap import (
    Heatmap,
    SlideFrame,
    assemble,
    percentile_ranks,
)
from .png import export_png
from .report import write_report
from .savers import HeatmapSaver, PredictionSaver
from .tiff import export_tiff

__all__ = [
    "Colouring",
    "Heatmap",
    "HeatmapSaver",
    "PredictionSaver",
    "SlideFrame",
    "assemble",
    "colour_table",
    "export_geojson",
    "export_png",
    "export_tiff",
    "percentile_ranks",
    "write_report",
]
