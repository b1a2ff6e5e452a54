"""What the runs work on: a few tiny synthetic slides, scans and bags, and a model of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chaos.forks import monai_mil, run

TRAINING = ("--set", "train::trainer::max_epochs=6", "--set", "device=cpu")


@dataclass(frozen=True)
class Materials:
    """Places of what :func:`make_materials` has made.

    Attributes:
        slides: cohort table of ``num_slides`` slides.
        scans: the same of scans.
        bags: folder of a cohort of labelled bags.
        model: folder of a training on them.
        predictions: of that model, with heatmaps.
    """

    folder: Path
    num_slides: int = 10
    num_scans: int = 10

    @property
    def slides(self) -> Path:
        return self.folder / "slides" / "cohort.csv"

    @property
    def scans(self) -> Path:
        return self.folder / "scans" / "cohort.csv"

    @property
    def bags(self) -> Path:
        return self.folder / "bags"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions" / "predictions.csv"


def make_materials(folder: Path, seed: int) -> Materials:
    """Make them, or take what an earlier call has made."""
    made = Materials(folder)
    said = folder / "said.txt"
    folder.mkdir(parents=True, exist_ok=True)
    if not made.slides.exists():
        _made(lambda: _slides(made, seed), said)
    if not made.scans.exists():
        _made(lambda: _scans(made, seed), said)
    if not (made.bags / "cohort.csv").exists():
        _made(lambda: _bags(made, seed), said)
    if not (made.model / "models" / "model.pt").exists():
        _made(monai_mil("train", "mil_baselines", made.bags, "--out", made.model, *TRAINING), said)
    if not made.predictions.exists():
        words = ("predict", "mil_baselines", made.bags / "cohort.csv", "--split", "test", "--model", made.model)
        _made(monai_mil(*words, "--out", made.predictions.parent), said)
    return made


def _made(work, said: Path) -> None:
    fork = run(work, said)
    if fork.code != 0:
        raise RuntimeError(f"the materials could not be made (code {fork.code}):\n{fork.words[-3000:]}")


def _slides(made: Materials, seed: int) -> None:
    from monai_mil.synthetic import make_slide_cohort

    make_slide_cohort(made.slides.parent, num_slides=made.num_slides, seed=seed, size=(1536, 1024))


def _scans(made: Materials, seed: int) -> None:
    from monai_mil.synthetic import make_scan_cohort

    formats = ("dicom", "nifti")
    make_scan_cohort(
        made.scans.parent, num_scans=made.num_scans, seed=seed, slices=(8, 12), size=64, slice_mm=10.0, formats=formats
    )


def _bags(made: Materials, seed: int) -> None:
    from monai_mil.synthetic import make_bag_cohort

    make_bag_cohort(made.bags, num_bags=30, width=32, seed=seed, bag_size=(20, 60))
