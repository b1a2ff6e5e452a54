from .choosing import distances, farthest_first, highest, next_tile, rank_product
from .heat import HEAT_CLASSES, HeatRegion, heat_regions
from .labels import LabelRules, WeakLabel, read_label_table
from .model import ANCHOR, Answer, ServedModel
from .replies import asap_xml, dsa_json, geojson_reply
from .scoring import entropy, heat_entropy, mutual_information, score_image
from .store import LabelStore, Record, Scores, Submission
from .submissions import Patch, Shape, patch_of, read_submission

__all__ = [
    "ANCHOR",
    "HEAT_CLASSES",
    "Answer",
    "HeatRegion",
    "LabelRules",
    "LabelStore",
    "Patch",
    "Record",
    "Scores",
    "ServedModel",
    "Shape",
    "Submission",
    "WeakLabel",
    "asap_xml",
    "distances",
    "dsa_json",
    "entropy",
    "farthest_first",
    "geojson_reply",
    "heat_entropy",
    "heat_regions",
    "highest",
    "mutual_information",
    "next_tile",
    "patch_of",
    "rank_product",
    "read_label_table",
    "read_submission",
    "score_image",
]
