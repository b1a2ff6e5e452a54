"""What made a result, as every object names it and every UID depends on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from monai_mil import __version__

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.sr import AlgorithmIdentification

MANUFACTURER = "monai-mil"
RESEARCH = "research use only"
_DIGITS = 32


@dataclass(frozen=True)
class Algorithm:
    """A network with its weights and settings.

    Attributes:
        name: of the bundle, as a reader sees it.
        version: of the bundle.
        weights: digest of the network's weights (``model_card.weights_digest``), or ``""``.
        settings: whatever else decides the answer, the operating points among it; JSON-able.
        note: what whoever reads a result must know of the model.

    Examples:
        >>> from monai_mil.dicom import Algorithm
        >>> one, other = (Algorithm("INSIGHT for CT", settings={"operating_points": [p]}) for p in (0.4, 0.5))
        >>> one.configuration == other.configuration
        False
    """

    name: str = MANUFACTURER
    version: str = __version__
    weights: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str | None = None

    @property
    def configuration(self) -> str:
        """Digest of the settings and of this package's version, 32 hexadecimal digits."""
        told = json.dumps([__version__, self.version, dict(self.settings)], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()[:_DIGITS]

    @property
    def facts(self) -> tuple[str, ...]:
        """What stands in every object as the algorithm's parameters."""
        facts = [f"weights {self.weights or 'unknown'}", f"configuration {self.configuration}"]
        facts.append(f"monai-mil {__version__}")
        return (*facts, RESEARCH, *filter(None, [self.note]))

    @property
    def equipment(self) -> dict[str, Any]:
        """The arguments of highdicom's constructors that say what wrote an object."""
        return {
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.name[:64],
            "software_versions": (f"monai-mil {__version__}", f"{self.version} (bundle)"),
            "device_serial_number": self.weights or "unknown",
        }

    def identification(self) -> AlgorithmIdentificationSequence:
        """The sequence that segments and annotations hold."""
        from highdicom import AlgorithmIdentificationSequence
        from pydicom.sr.codedict import codes

        return AlgorithmIdentificationSequence(
            self.name[:64],
            codes.DCM.ArtificialIntelligence,
            self.version,
            source=MANUFACTURER,
            parameters={"weights": self.weights or "unknown", "configuration": self.configuration},
        )

    def content_items(self) -> AlgorithmIdentification:
        """The content items of TID 4019 that reports hold."""
        from highdicom.sr import AlgorithmIdentification
        from pydicom.sr.codedict import codes

        return AlgorithmIdentification(
            self.name, self.version, self.facts, codes.DCM.ArtificialIntelligence, MANUFACTURER
        )
