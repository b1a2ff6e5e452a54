"""Predictions whose features are kept: first the bags, then the answer for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_mil.cohorts import Cohort, CohortSlide
from monai_mil.errors import SettingsError
from monai_mil.runs.bundles import Bundle
from monai_mil.runs.light_imports import import_monai_lightly
from monai_mil.runs.run import BundleRun

if TYPE_CHECKING:
    from monai_mil.embedding import EmbedReport

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
    "decoder",
)
_SCANS = ("allow_gaps", "accept_units", "lungs", "depth", "depth_mode")
_OF_RAW = (
    "inputs",
    "mpp",
    "target_mpp",
    "weights",
    "min_tissue",
    "tissue",
    "masks",
    "series",
    "plane",
    "icc",
    "decoder",
)


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
    embed_as(run.bundle, content("preprocessing").transforms[0], cohort, out / "bags", device=str(content("device")))
    return from_bags(run, out / "bags", cohort_file=str(table))


def from_bags(run: BundleRun, bags: Path, **settings: Any) -> BundleRun:
    """The run that predicts from bags what ``run`` predicts from the slides or scans themselves.

    Args:
        run: as ``predict_run`` gives it, for raw input.
        bags: their bags, as :func:`embed_as` makes them.
        settings: further keys of the bundle's configs, in place of the run's own.
    """
    raw = f"inference_{run.bundle.reads}"
    own = {name: value for name, value in run.settings.items() if name not in _OF_RAW}
    configs = tuple(name for name in run.configs if name != raw)
    return BundleRun(run.bundle, configs, {**own, "bag_dir": str(bags), **settings})


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


def embed_as(
    bundle: Bundle,
    transform: Any,
    cohort: Cohort,
    bags: Path,
    *,
    device: str,
    overwrite: bool = False,
    progress: bool = True,
) -> EmbedReport:
    """Embed cases into a folder of bags as a bundle reads them.

    Args:
        bundle: whose input they become.
        transform: the first of its raw ``preprocessing``, which holds encoder and settings.
        cohort: the cases.
        bags: the folder.
        device: where the encoder runs.
        overwrite: replace bags of another source or of other settings, which are errors without it.
        progress: show a bar, and at the end what failed.

    Returns:
        What became of every case.

    Raises:
        MonaiMILError: nothing can be embedded.
    """
    from monai_mil.embedding import embed_cohort, embed_scans

    settings = transform.settings
    common: dict[str, Any] = {"device": device, "overwrite": overwrite, "progress": progress}
    if bundle.reads == "slides":
        cut = {name: getattr(settings, name) for name in _SLIDES}
        return embed_cohort(cohort, bags, transform.encoder, **common, **cut)
    cut = {name: getattr(settings, name) for name in _SCANS}
    preset, acquisition = settings.preset, transform.acquisition
    return embed_scans(cohort, bags, transform.encoder, preset, acquisition=acquisition, **common, **cut)
