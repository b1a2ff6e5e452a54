"""What each part of ASMIL gives on the classic sets: its anchor, the anchor's normalised sigmoid, the hidden tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments.classic_mil import METHODS, WIDTH, anchored, compare
from monai_mil.networks import ASMIL

_DROP = METHODS["ASMIL without its anchor"]
_NEITHER = replace(_DROP, network=partial(ASMIL, num_classes=2, hidden_dim=WIDTH, drop=0.0))
ABLATION = {
    "ASMIL": METHODS["ASMIL"],
    "softmax in place of the normalised sigmoid": anchored(_DROP, "softmax"),
    "ASMIL without its anchor": _DROP,
    "no hidden tokens": anchored(_NEITHER),
    "the network alone": _NEITHER,
    "gated ABMIL": METHODS["gated ABMIL"],
}


def run(folder: Path, data: Path) -> str:
    """Train every variant on every set; a table as of ``classic_mil``, whose networks it takes where they exist."""
    others = ("gated ABMIL", "the network alone")
    pairs = [(name, other) for other in others for name in ABLATION if name not in (other, "gated ABMIL")]
    return compare(folder.with_name("classic_mil"), data, ABLATION, pairs)
