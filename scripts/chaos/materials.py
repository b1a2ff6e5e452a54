"""What the runs work on: a few tiny synthetic slides, scans and bags, and a model of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chaos.forks import monai_mil, run

TRAINING = ("--set", "train::trainer::max_epochs=6", "--set", "device=cpu")


@dataclass(frozen=True)
class Materials:
    """What runs work on, each made when it is first asked for, unless an earlier call has made it.

    Attributes:
        folder: where it lies.
        seed: of everything.
        size: width and height of a slide in pixels.
    """

    folder: Path
    seed: int
    size: tuple[int, int] = (1536, 1024)

    @property
    def slides(self) -> Path:
        """Cohort table of ten slides."""

        def make() -> None:
            from monai_mil.synthetic import make_slide_cohort

            make_slide_cohort(self.folder / "slides", num_slides=10, seed=self.seed, size=self.size)

        return self._made(make, self.folder / "slides" / "cohort.csv")

    @property
    def scans(self) -> Path:
        """Cohort table of ten scans, DICOM and NIfTI."""

        def make() -> None:
            from monai_mil.synthetic import make_scan_cohort

            options = {"slices": (8, 12), "size": 64, "slice_mm": 10.0, "formats": ("dicom", "nifti")}
            make_scan_cohort(self.folder / "scans", num_scans=10, seed=self.seed, **options)

        return self._made(make, self.folder / "scans" / "cohort.csv")

    @property
    def bags(self) -> Path:
        """Folder of a cohort of thirty labelled bags."""

        def make() -> None:
            from monai_mil.synthetic import make_bag_cohort

            make_bag_cohort(self.folder / "bags", num_bags=30, width=32, seed=self.seed, bag_size=(20, 60))

        return self._made(make, self.folder / "bags" / "cohort.csv").parent

    @property
    def model(self) -> Path:
        """Folder of a training on the bags."""
        folder = self.folder / "model"
        train = monai_mil("train", "mil_baselines", self.bags, "--out", folder, *TRAINING)
        self._made(train, folder / "models" / "model.pt")
        return folder

    @property
    def predictions(self) -> Path:
        """Table of what that model predicts, with heatmaps beside it."""
        table = self.folder / "predictions" / "predictions.csv"
        words = ("predict", "mil_baselines", self.bags / "cohort.csv", "--split", "test", "--model", self.model)
        return self._made(monai_mil(*words, "--out", table.parent), table)

    def _made(self, work: Callable[[], object], place: Path) -> Path:
        if not place.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            fork = run(work, self.folder / "said.txt")
            if fork.code != 0 or not place.exists():
                raise RuntimeError(f"'{place}' could not be made (code {fork.code}):\n{fork.words[-3000:]}")
        return place
