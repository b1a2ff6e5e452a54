"""A synthetic survival cohort: a few planted tiles of each bag tell how soon the event comes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from monai_mil.bags import BagFile, BagInfo
from monai_mil.cohorts import Cohort, CohortSlide, split_survival_cohort

_STEP = 512


def make_survival_cohort(
    folder: str | os.PathLike[str],
    *,
    num_bags: int = 200,
    width: int = 64,
    seed: int = 0,
    bag_size: tuple[int, int] = (40, 200),
    planted: float = 0.2,
    log_hazard: float = 4.0,
    censored: float = 0.35,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
) -> Path:
    """Write feature bags of patients with follow-up, and the cohort table.

    Instances are one of four background prototypes plus unit noise; the planted ones are around a prototype of their
    own, moved along a direction by the patient's severity ``s``, uniform in -1.5 to 1.5. Times to the event are Weibull
    (shape 2) with hazard proportional to ``exp(log_hazard s)``, cut off at uniform times of censoring.

    Args:
        folder: gets ``bags/<slide_id>.h5`` (with the dataset ``instance_labels``, 1 where planted) and ``cohort.csv``.
        num_bags: how many bags, one a patient.
        width: number of feature channels.
        seed: of everything.
        bag_size: smallest and largest number of instances.
        planted: share of planted instances in a bag, at least one.
        log_hazard: how much severity matters; 0 leaves nothing to find.
        censored: share of patients whose follow-up ends before the event, about.
        fractions: shares of train, val and test.

    Returns:
        Path of ``cohort.csv``: slide_id, patient_id, path (empty), split, time (months), event (1, or 0 where
        censored) and severity (the planted risk).

    Examples:
        >>> from monai_mil.cohorts import read_survival_cohort
        >>> from monai_mil.synthetic import make_survival_cohort
        >>> cohort = read_survival_cohort(make_survival_cohort(folder, num_bags=10, width=8, bag_size=(5, 20)))
        >>> len(cohort.slides), cohort.labels
        (10, ('time', 'event'))
    """
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    prototypes = rng.normal(0, 0.7, (5, width))
    direction = rng.normal(0, 0.7, width)
    severity = rng.uniform(-1.5, 1.5, num_bags)
    times, events = _follow_ups(rng, severity * log_hazard, censored)
    slides = []
    for index in range(num_bags):
        n = int(rng.integers(bag_size[0], bag_size[1] + 1))
        coords, truth = _planted(rng, n, planted)
        kind = np.where(truth > 0, 4, rng.integers(0, 4, n))
        features = prototypes[kind] + truth[:, None] * severity[index] * direction + rng.standard_normal((n, width))
        slide_id = f"bag_{index:03d}"
        path = folder / "bags" / f"{slide_id}.h5"
        BagFile.write(path, features.astype(np.float16), coords, _info(slide_id, coords), {"instance_labels": truth})
        label = (float(times[index]), float(events[index]))
        slides.append(CohortSlide(slide_id=slide_id, patient_id=f"patient_{index:03d}", label=label))
    cohort = Cohort(folder / "cohort.csv", tuple(slides), ("time", "event"), ("time", "event"))
    columns = {"severity": [f"{value:.6f}" for value in severity]}
    return split_survival_cohort(cohort, fractions, seed).write(folder / "cohort.csv", columns)


def _follow_ups(rng: np.random.Generator, log_hazard: np.ndarray, censored: float) -> tuple[np.ndarray, np.ndarray]:
    """Times in months, to two digits, and events (1, or 0 where censored)."""
    to_event = 24 * np.sqrt(rng.exponential(size=len(log_hazard)) / np.exp(log_hazard))
    ends = rng.uniform(size=len(log_hazard))
    # The longest follow-up that censors the wanted share of patients.
    longest = np.quantile(to_event / ends, 1 - censored)
    times = np.minimum(to_event, longest * ends)
    return np.maximum(times.round(2), 0.01), (to_event <= longest * ends).astype(int)


def _planted(rng: np.random.Generator, n: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Corners of tiles in rows of a square, and 1 for those nearest to a random one."""
    columns = int(np.ceil(np.sqrt(n)))
    index = np.stack([np.arange(n) % columns, np.arange(n) // columns], axis=1)
    distance = np.linalg.norm(index - index[rng.integers(n)], axis=1)
    truth = np.zeros(n, np.int64)
    truth[np.argsort(distance, kind="stable")[: max(1, round(share * n))]] = 1
    return index * _STEP, truth


def _info(slide_id: str, coords: np.ndarray) -> BagInfo:
    right, bottom = (coords.max(axis=0) + _STEP).tolist()
    return BagInfo(
        slide_id=slide_id,
        encoder="synthetic",
        tile_size=256,
        tile_size_level0=float(_STEP),
        overlap=0,
        target_mpp=0.5,
        level0_size=(right, bottom),
        mpp=0.25,
        reader="synthetic",
    )
