from .annotations import find_truth, open_truth, read_shapes
from .blocks import BlockGrid
from .bounds import AnnotationFrame, Bounds, frame_origin, slide_bounds
from .decoder import Decoder, decoder_of, recorded_decoder
from .grid import TileGrid
from .lesions import Lesions, find_lesions
from .parts import slide_files
from .plan import enlargement
from .pyramid import write_pyramid
from .readers import reader_report
from .slide import Level, Slide, open_slide, slide_id
from .stream import stream_tiles
from .tissue import TISSUE_VERSION, TissueMask, TissueSettings, segment_tissue
from .tissue_file import find_tissue_file, read_tissue, tissue_digest
from .tree import TileTree, child_coords
from .truth import Truth

__all__ = [
    "TISSUE_VERSION",
    "AnnotationFrame",
    "BlockGrid",
    "Bounds",
    "Decoder",
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
    "enlargement",
    "find_lesions",
    "find_tissue_file",
    "find_truth",
    "frame_origin",
    "open_slide",
    "open_truth",
    "read_shapes",
    "read_tissue",
    "reader_report",
    "recorded_decoder",
    "segment_tissue",
    "slide_bounds",
    "slide_files",
    "slide_id",
    "stream_tiles",
    "tissue_digest",
    "write_pyramid",
]
