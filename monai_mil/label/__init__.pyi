from .heat import HEAT_CLASSES, HeatRegion, heat_regions
from .labels import LabelRules, WeakLabel, read_label_table
from .replies import asap_xml, dsa_json, geojson_reply
from .store import LabelStore, Record, Scores, Submission
from .submissions import Patch, Shape, patch_of, read_submission

__all__ = [
    "HEAT_CLASSES",
    "HeatRegion",
    "LabelRules",
    "LabelStore",
    "Patch",
    "Record",
    "Scores",
    "Shape",
    "Submission",
    "WeakLabel",
    "asap_xml",
    "dsa_json",
    "geojson_reply",
    "heat_regions",
    "patch_of",
    "read_label_table",
    "read_submission",
]
