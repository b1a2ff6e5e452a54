"""All that trainings import, imported before processes are forked, so that each of them begins at once."""

from __future__ import annotations

import gc

from monai_mil.runs.quiet_imports import quiet_imports


def import_monai_wholly() -> None:
    """Import MONAI and what trainings and evaluations use of it; forks of this process then share it."""
    with quiet_imports():
        import torch._dynamo  # noqa: F401

        import monai_mil.savers
        import monai_mil.training  # noqa: F401

    gc.freeze()  # what was imported is never garbage; looking through it would copy it into every fork
