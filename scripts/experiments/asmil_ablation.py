"""What each part of ASMIL gives on the classic sets: the hidden tokens, the anchor, the anchor's normalised sigmoid."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from experiments.classic_mil import METHODS, WIDTH, anchored, compare
from monai_mil.networks import ASMIL

_HIDDEN_TOKENS = METHODS["ASMIL without its anchor"]
LADDER = {
    "ASMIL's network alone": replace(_HIDDEN_TOKENS, network=partial(ASMIL, num_classes=2, hidden_dim=WIDTH, drop=0.0)),
    "ASMIL without its anchor": _HIDDEN_TOKENS,
    "ASMIL with a softmax anchor": anchored(_HIDDEN_TOKENS, "softmax"),
    "ASMIL": METHODS["ASMIL"],
}
"""Every one has a part more than the one before."""
REPETITIONS = 3  # of the five: the differences are between bags rather than repetitions, and a step takes half an hour


def run(folder: Path, data: Path) -> str:
    """Train every step on every set; a table as of ``classic_mil``, whose networks it takes where they exist."""
    methods = {**LADDER, "gated ABMIL": METHODS["gated ABMIL"]}
    pairs = [(name, "gated ABMIL") for name in LADDER] + [(later, earlier) for earlier, later in pairwise(LADDER)]
    return compare(folder.with_name("classic_mil"), data, methods, pairs, REPETITIONS)
