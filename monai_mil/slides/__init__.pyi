from .grid import TileGrid
from .pyramid import write_pyramid
from .readers import reader_report
from .slide import Level, Slide, open_slide, slide_id
from .stream import stream_tiles
from .tissue import TissueMask, TissueSettings, segment_tissue

__all__ = [
    "Level",
    "Slide",
    "TileGrid",
    "TissueMask",
    "TissueSettings",
    "open_slide",
    "reader_report",
    "segment_tissue",
    "slide_id",
    "stream_tiles",
    "write_pyramid",
]
