"""What is walked of a folder, and what of a run's results is not."""

from __future__ import annotations

import shutil

import nibabel
import numpy as np
import pytest

from monai_mil.cohorts import find_slides, scan_datalist
from monai_mil.folders import walk_files
from monai_mil.slides import write_pyramid


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def walked(folder):
    return [path.relative_to(folder).as_posix() for _, paths in walk_files(folder, print) for path in paths]


@pytest.mark.parametrize("mark", ["predictions.csv", "predictions.partial.csv", "predict.jsonl"])
def test_results_of_a_run_are_no_slides_or_scans(mark, tmp_path):
    touched(tmp_path, "a.svs", f"out/{mark}", "out/report.html", "out/heatmaps/a.tiff", "out/heatmaps/a.nii.gz",
            "out/slices/a.csv", "out/bags/a.h5", "out/b.svs", "out/more/c.svs")  # fmt: skip
    assert walked(tmp_path) == ["a.svs", "out/b.svs", "out/more/c.svs"]


def test_folders_of_the_same_names_elsewhere_are_walked(tmp_path):
    touched(tmp_path, "heatmaps/a.tiff", "slices/b.svs", "report.html")
    assert walked(tmp_path) == ["report.html", "heatmaps/a.tiff", "slices/b.svs"]


def test_a_run_that_writes_beside_its_input_finds_the_same_again(tmp_path):
    scan = nibabel.Nifti1Image(np.random.default_rng(0).integers(-1000, 500, (32, 32, 8)).astype(np.int16), np.eye(4))
    nibabel.save(scan, tmp_path / "chest.nii.gz")
    write_pyramid(tmp_path / "S-1.tif", np.full((512, 512, 3), 200, np.uint8), mpp=0.5)
    before = scan_datalist(tmp_path), find_slides(tmp_path)
    touched(tmp_path, "predictions.csv", "report.html")
    (tmp_path / "heatmaps").mkdir()
    shutil.copy(tmp_path / "chest.nii.gz", tmp_path / "heatmaps" / "chest.nii.gz")
    shutil.copy(tmp_path / "S-1.tif", tmp_path / "heatmaps" / "S-1.tiff")
    assert (scan_datalist(tmp_path), find_slides(tmp_path)) == before
