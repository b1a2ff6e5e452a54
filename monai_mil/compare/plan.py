"""What a comparison is of: the cohort with its folds, and every job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from monai_mil.cohorts import Cohort, read_cohort, read_survival_cohort, split_cohort, split_survival_cohort
from monai_mil.compare.competitor import Competitor
from monai_mil.compare.features import features_digest
from monai_mil.compare.job import Job
from monai_mil.compare.protocol import refuse_own_terms
from monai_mil.errors import CohortError, SettingsError
from monai_mil.files import make_folder
from monai_mil.runs import class_names, cohort_settings

TABLE = "cohort.csv"


@dataclass(frozen=True)
class Plan:
    """A comparison before it is begun.

    Attributes:
        out: where all of it is written.
        cohort: the cases with their folds, as they stand in ``cohort.csv`` of ``out``.
        competitors: the methods, in the order of the table.
        reference: name of the method that the others are tested against.
        jobs: every training, seed by seed so that all methods are known on all folds first.
        survival: bags are labelled with follow-up.
        epochs: of every training.
    """

    out: Path
    cohort: Cohort
    competitors: tuple[Competitor, ...]
    reference: str
    jobs: tuple[Job, ...]
    survival: bool
    epochs: int

    @property
    def classes(self) -> list[str]:
        """Names of the classes in the order of the networks' outputs; empty for survival."""
        return list(self.jobs[0].shared.get("class_names", ()))

    def check_earlier(self) -> None:
        """Make sure that what ``out`` holds is of this comparison.

        Raises:
            SettingsError: a run there, finished or not, had other settings.
        """
        for job in self.jobs:
            if job.is_of_other_settings():
                raise SettingsError(
                    f"'{job.folder}' was run with other settings, another version, other cases or other bags: choose "
                    "another --out, or remove that folder to run it again"
                )


def make_plan(
    cohort: Path,
    competitors: Sequence[Competitor],
    out: Path,
    *,
    folds: int = 5,
    seeds: int = 5,
    epochs: int = 30,
    reference: str | None = None,
    label_columns: Sequence[str] = ("label",),
    survival: bool = False,
    settings: Mapping[str, Any] | None = None,
    test_curve: bool = False,
    sweep: tuple[str, tuple[Any, ...]] | None = None,
) -> Plan:
    """Read the cohort, make its folds unless it has some, and list the jobs.

    The folds are those of the table's column ``fold``; where it has none, patients are divided, stratified by class or
    event. The table with its folds is kept as ``cohort.csv`` of ``out``; the cohort's own one is not touched.

    Args:
        cohort: the table, or the folder with ``cohort.csv`` and ``bags/``.
        competitors: the methods.
        out: where all of it is written.
        folds: how many, where the table has none.
        seeds: how many, from 0 up.
        epochs: of every training.
        reference: name of the method that the others are tested against; None takes the first.
        label_columns: of the table.
        survival: the labels are times and events.
        settings: further keys that all methods share.
        test_curve: answer the test cases after every epoch too, which changes no choice.
        sweep: a key and values with each of which finished models are evaluated again.

    Raises:
        CohortError: the table cannot be read, or ``out`` has the folds of other cases.
        SettingsError: no method is called as the reference, or one sets what the comparison sets for all.
    """
    refuse_own_terms(competitors, settings or {})
    out = out.absolute()
    place = cohort_settings(cohort)
    with_folds = _with_folds(Path(place["cohort_file"]), out, label_columns, survival, folds)
    names = [one.name for one in competitors]
    if reference is not None and reference not in names:
        raise SettingsError(
            f"no method is called '{reference}', which is to be the reference; there are {', '.join(names)}"
        )
    data, shared = Path(place["dataset_dir"]), dict(settings or {})
    if not survival:
        shared["class_names"] = class_names(out / TABLE, label_columns)
        if tuple(label_columns) != ("label",):
            shared["label_columns"] = list(label_columns)
        if len(label_columns) > 1:
            shared["multi_label"] = True
    has_truth = (data / "masks").is_dir() and not survival
    common: dict[str, Any] = {"out": out, "data": data, "epochs": epochs, "shared": shared, "survival": survival}
    common |= {"test_curve": test_curve, "sweep": sweep, "cases": _digest(with_folds)}
    truth = data / "masks" if has_truth else None
    places = {one.bag_dir(data, shared) for one in competitors}
    features = {place: features_digest(with_folds, place, truth) for place in places}
    jobs = [
        Job(
            one,
            fold,
            seed,
            truth=has_truth and _localises(one, with_folds),
            features=features[one.bag_dir(data, shared)],
            **common,
        )
        for seed in range(seeds)
        for fold in with_folds.folds
        for one in competitors
    ]
    return Plan(out, with_folds, tuple(competitors), reference or names[0], tuple(jobs), survival, epochs)


def _with_folds(table: Path, out: Path, label_columns: Sequence[str], survival: bool, count: int) -> Cohort:
    own, kept = _read(table, label_columns, survival), out / TABLE
    if not kept.is_file():
        make_folder(out)
        divide = split_survival_cohort if survival else split_cohort
        (own if own.folds else divide(own, folds=count)).write(kept)
    cohort = _read(kept, label_columns, survival)
    if cohort.digest() != own.digest() or (own.folds and _digest(own) != _digest(cohort)):
        raise CohortError(
            f"'{kept}' has the folds of other cases, labels or folds than '{table}'; choose another --out"
        )
    if not own.folds and len(cohort.folds) != count:
        raise CohortError(f"'{kept}' has {len(cohort.folds)} folds, not {count}; choose another --out")
    return cohort


def _read(table: Path, label_columns: Sequence[str], survival: bool) -> Cohort:
    return read_survival_cohort(table) if survival else read_cohort(table, labels=label_columns)


def _digest(cohort: Cohort) -> str:
    """What tells cases, labels and folds from any others."""
    return replace(
        cohort, slides=tuple(replace(slide, slide_id=f"{slide.slide_id} {slide.fold}") for slide in cohort.slides)
    ).digest()


def _localises(competitor: Competitor, cohort: Cohort) -> bool:
    """Whether a bundle compares its maps with the truth of such cases."""
    return competitor.bundle.has("localise") and competitor.bundle.reads == f"{cohort.case}s"
