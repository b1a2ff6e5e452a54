from .choosing import distances, farthest_first, highest, next_tile, rank_product
from .heat import HEAT_CLASSES, HeatRegion, heat_regions
from .images import StudyImage, StudyImages
from .labels import LabelRules, WeakLabel, read_label_table
from .masks import has_finding
from .model import ANCHOR, Answer, ServedModel
from .project import CONF, STRATEGIES, Conf, Project, init_project
from .replies import asap_xml, dsa_json, geojson_reply
from .scoring import entropy, heat_entropy, mutual_information, score_image
from .start import LOOPBACK, start_command
from .store import LabelStore, Record, Scores, Submission
from .submissions import Patch, Shape, patch_of, read_submission
from .training import TrainingOutcome, publish, split_off, train_on_labels

__all__ = [
    "ANCHOR",
    "CONF",
    "HEAT_CLASSES",
    "LOOPBACK",
    "STRATEGIES",
    "Answer",
    "Conf",
    "HeatRegion",
    "LabelRules",
    "LabelStore",
    "Patch",
    "Project",
    "Record",
    "Scores",
    "ServedModel",
    "Shape",
    "StudyImage",
    "StudyImages",
    "Submission",
    "TrainingOutcome",
    "WeakLabel",
    "asap_xml",
    "distances",
    "dsa_json",
    "entropy",
    "farthest_first",
    "geojson_reply",
    "has_finding",
    "heat_entropy",
    "heat_regions",
    "highest",
    "init_project",
    "mutual_information",
    "next_tile",
    "patch_of",
    "publish",
    "rank_product",
    "read_label_table",
    "read_submission",
    "score_image",
    "split_off",
    "start_command",
    "train_on_labels",
]
