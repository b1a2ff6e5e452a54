from .colours import Colouring, colour_table
from .curve import draw_curve, export_curve, moments_mm
from .decision import muted_text
from .dice import SlideDice, dice_counts, slide_dice
from .figure import scale_bar, score_text
from .foreground import otsu
from .geojson import export_geojson
from .heatmap import Heatmap, SlideFrame, assemble, canvas_geometry, percentile_ranks, to_numpy
from .layer import OUTLINE_COLOUR, draw_layer, draw_outline, drawing_style, foreground_text
from .localisation import localise
from .mask import export_mask
from .montage import colour_text, contour_text, display_window, draw_montage, export_montage, window_text
from .nifti import export_nifti, export_nifti_mask
from .png import export_png, thumbnail
from .regions import Region, find_regions
from .scan_dice import scan_dice_counts
from .scan_heatmap import ScanHeatmap, is_of_model, load_heatmap
from .slide_source import open_scored_slide
from .stitching import TokenCanvas, stitch
from .tiff import default_downsample, export_tiff

__all__ = [
    "OUTLINE_COLOUR",
    "Colouring",
    "Heatmap",
    "Region",
    "ScanHeatmap",
    "SlideDice",
    "SlideFrame",
    "TokenCanvas",
    "assemble",
    "canvas_geometry",
    "colour_table",
    "colour_text",
    "contour_text",
    "default_downsample",
    "dice_counts",
    "display_window",
    "draw_curve",
    "draw_layer",
    "draw_montage",
    "draw_outline",
    "drawing_style",
    "export_curve",
    "export_geojson",
    "export_mask",
    "export_montage",
    "export_nifti",
    "export_nifti_mask",
    "export_png",
    "export_tiff",
    "find_regions",
    "foreground_text",
    "is_of_model",
    "load_heatmap",
    "localise",
    "moments_mm",
    "muted_text",
    "open_scored_slide",
    "otsu",
    "percentile_ranks",
    "scale_bar",
    "scan_dice_counts",
    "score_text",
    "slide_dice",
    "stitch",
    "thumbnail",
    "to_numpy",
    "window_text",
]
