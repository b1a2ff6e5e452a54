"""All that trainings import, imported before processes are forked, so that each of them begins at once."""

from __future__ import annotations

import gc
from importlib import import_module

from monai_mil.runs.quiet_imports import quiet_imports

_USED = (
    *("monai.bundle", "monai.engines", "monai.handlers", "monai.apps"),
    *("torch._dynamo", "sklearn.metrics", "matplotlib.pyplot"),
    *("monai_mil.savers", "monai_mil.training", "monai_mil.losses", "monai_mil.networks", "monai_mil.heatmaps"),
    *("monai_mil.cohorts", "monai_mil.bags", "h5py"),
)


def import_monai_wholly() -> None:
    """Import MONAI and what trainings and evaluations use of it; forks of this process then share it."""
    with quiet_imports():
        for name in _USED:
            import_module(name)
    gc.freeze()  # what was imported is never garbage; looking through it would copy it into every fork
