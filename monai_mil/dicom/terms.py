"""The coded words of the objects."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from highdicom.sr import CodedConcept

Term = tuple[str, str, str]
"""Code value, coding scheme and meaning: ``("52988006", "SCT", "Lesion")``."""

PRIVATE = "99MONAIMIL"
_SHORT = 16
_REGIONS: dict[str, Term] = {
    "ABDOMEN": ("818981001", "SCT", "Abdomen"),
    "ABDOMENPELVIS": ("818982008", "SCT", "Abdomen and Pelvis"),
    "BRAIN": ("12738006", "SCT", "Brain"),
    "CHEST": ("816094009", "SCT", "Chest"),
    "CHESTABDOMEN": ("416550000", "SCT", "Chest and Abdomen"),
    "CHESTABDPELVIS": ("416775004", "SCT", "Chest, Abdomen and Pelvis"),
    "HEAD": ("69536005", "SCT", "Head"),
    "LUNG": ("39607008", "SCT", "Lung"),
    "NECK": ("45048000", "SCT", "Neck"),
    "PELVIS": ("816092008", "SCT", "Pelvis"),
    "SPINE": ("421060004", "SCT", "Spine"),
}
"""By BodyPartExamined (PS3.16 annex L)."""
_BODY: Term = ("38266002", "SCT", "Entire body")


@dataclass(frozen=True)
class Terms:
    """Which codes say what was looked for; whoever runs an application knows better than a bundle.

    Attributes:
        procedure: what was reported on; None takes "CT unspecified body region" of a scan, "Imaging procedure" of a
            slide (both of CID 100).
        findings: the code of a class, by its name; one that is not there gets a private code.
        category: of what segments and annotations show.
        kind: what they show.
        region: where in the body the images are; None goes by the source's BodyPartExamined.
    """

    procedure: Term | None = None
    findings: Mapping[str, Term] = field(default_factory=dict)
    category: Term = ("49755003", "SCT", "Morphologically Abnormal Structure")
    kind: Term = ("52988006", "SCT", "Lesion")
    region: Term | None = None

    def finding(self, name: str) -> CodedConcept:
        """The code of a class."""
        return coded(tuple(self.findings[name]) if name in self.findings else private(name))  # type: ignore[arg-type]


def coded(term: Term) -> CodedConcept:
    """A term as highdicom takes it."""
    from highdicom.sr import CodedConcept

    value, scheme, meaning = term
    return CodedConcept(value, scheme, meaning)


def private(meaning: str) -> Term:
    """A term of this project's own scheme; its value depends on the meaning alone."""
    plain = meaning.isascii() and len(meaning) <= _SHORT
    return meaning if plain else hashlib.sha256(meaning.encode()).hexdigest()[:_SHORT], PRIVATE, meaning[:64]


def region_of(body_part: str) -> Term:
    """The anatomic region that a BodyPartExamined names; the entire body where it is none of the usual ones."""
    return _REGIONS.get(body_part.strip().upper(), _BODY)
