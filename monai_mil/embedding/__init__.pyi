from .bars import CaseBars
from .descend_slide import DescendSlided
from .job import CaseResult
from .mask_label import MaskLabeld
from .run import EmbedReport
from .scan import ScanSettings, check_packages, check_preset, embed_scan, scan_coords
from .scans import embed_scans
from .screen_slide import ScreenSlided
from .slide import EmbedSettings, embed_slide, tile_slide, tree_slide
from .slides import embed_cohort
from .stream_slide import StreamSlided
from .transforms import EmbedScand, EmbedSlided
from .watch import watched

__all__ = [
    "CaseBars",
    "CaseResult",
    "DescendSlided",
    "EmbedReport",
    "EmbedScand",
    "EmbedSettings",
    "EmbedSlided",
    "MaskLabeld",
    "ScanSettings",
    "ScreenSlided",
    "StreamSlided",
    "check_packages",
    "check_preset",
    "embed_cohort",
    "embed_scan",
    "embed_scans",
    "embed_slide",
    "scan_coords",
    "tile_slide",
    "tree_slide",
    "watched",
]
