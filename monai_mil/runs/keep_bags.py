"""Predictions whose features are kept: first the bags, then the answer for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_mil.cohorts import Cohort, CohortSlide
from monai_mil.errors import SettingsError
from monai_mil.runs.light_imports import import_monai_lightly
from monai_mil.runs.run import BundleRun

_SLIDES = (
    "tile_size",
    "target_mpp",
    "overlap",
    "min_tissue",
    "tissue",
    "masks",
    "mpp",
    "levels",
    "series",
    "plane",
    "icc",
)
_SCANS = ("allow_gaps", "accept_units", "lungs", "depth", "depth_mode")
_OF_RAW = ("inputs", "mpp", "target_mpp", "weights", "min_tissue", "tissue", "masks", "series", "plane", "icc")


def with_bags(run: BundleRun) -> BundleRun:
    """Embed the slides or scans of a run into ``bags/`` of its folder, as the run itself would read them.

    Bags that are there already are kept. Which cases there are stands in ``bags.csv`` beside them unless a table says
    it, so that one that cannot be embedded fails in the run that follows, too.

    Args:
        run: as ``predict_run`` gives it, for raw input.

    Returns:
        The run that predicts from the bags.

    Raises:
        SettingsError: the run does not read slides or scans.
        MonaiMILError: nothing can be embedded.
    """
    raw = f"inference_{run.bundle.reads}"
    if raw not in run.configs:
        raise SettingsError("the input holds features already; --bags keeps those of slides or scans")
    import_monai_lightly()
    workflow = run.workflow()
    workflow.initialize()
    content = workflow.parser.get_parsed_content
    out = Path(run.settings["output_dir"])
    cohort, table = _cohort(run, content("cohort"), content("dataset").data, out)
    _embed(run, cohort, out / "bags", content("preprocessing").transforms[0], str(content("device")))
    settings = {name: value for name, value in run.settings.items() if name not in _OF_RAW}
    own = {"bag_dir": str(out / "bags"), "cohort_file": str(table)}
    return BundleRun(run.bundle, tuple(name for name in run.configs if name != raw), {**settings, **own})


def _cohort(
    run: BundleRun, cohort: Cohort | None, items: Sequence[Mapping[str, Any]], out: Path
) -> tuple[Cohort, Path]:
    """The run's cases and the table that names them."""
    split = run.settings.get("split")
    if cohort is not None:
        cases = tuple(case for case in cohort.slides if split is None or case.split == split)
        return dataclasses.replace(cohort, slides=cases, bag_of="slide"), cohort.source
    id_column = "scan_id" if run.bundle.reads == "scans" else "slide_id"
    cases = tuple(
        CohortSlide(item[id_column], item[id_column], Path(item["image"]), series_uid=item.get("series_uid") or None)
        for item in items
    )
    table = out / "bags.csv"
    cohort = Cohort(table, cases, id_column=id_column)
    cohort.write(table)
    return cohort, table


def _embed(run: BundleRun, cohort: Cohort, bags: Path, transform: Any, device: str) -> None:
    from monai_mil.embedding import embed_cohort, embed_scans

    settings = transform.settings
    if run.bundle.reads == "slides":
        embed_cohort(
            cohort, bags, transform.encoder, device=device, **{name: getattr(settings, name) for name in _SLIDES}
        )
    else:
        cut = {name: getattr(settings, name) for name in _SCANS}
        embed_scans(
            cohort, bags, transform.encoder, settings.preset, acquisition=transform.acquisition, device=device, **cut
        )
