from .annotations import find_truth, open_truth
from .blocks import BlockGrid
from .decoder import decoder_of
from .grid import TileGrid
from .lesions import Lesions, find_lesions
from .parts import slide_files
from .pyramid import write_pyramid
from .readers import reader_report
from .slide import Level, Slide, open_slide, slide_id
from .stream import stream_tiles
from .tissue import TissueMask, TissueSettings, segment_tissue
from .tree import TileTree, child_coords
from .truth import Truth

__all__ = [
    "BlockGrid",
    "Lesions",
    "Level",
    "Slide",
    "TileGrid",
    "TileTree",
    "TissueMask",
    "TissueSettings",
    "Truth",
    "child_coords",
    "decoder_of",
    "find_lesions",
    "find_truth",
    "open_slide",
    "open_truth",
    "reader_report",
    "segment_tissue",
    "slide_files",
    "slide_id",
    "stream_tiles",
    "write_pyramid",
]
