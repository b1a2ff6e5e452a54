"""What only the bundle pathology_asmil does: its anchor, the curve of attention, localisation."""

import json
import re

import pytest
import torch

from monai_mil.heatmaps import Heatmap
from tests.bundles.common import checkpoint, rows, run_bundle, weights
from tests.conftest import shared

NAME = "pathology_asmil"


def test_every_step_moves_the_anchor_which_is_in_the_checkpoint_and_not_in_the_model(trained, cohort):
    folder, _ = trained
    earlier, objects = (checkpoint(folder, epoch) for epoch in (2, 3))
    bags = [row for row in rows(cohort / "cohort.csv") if row["split"] == "train"]
    assert objects["anchor"]["steps"] == 3 * len(bags)
    key = "attention.key.weight"
    assert not torch.equal(objects["anchor"]["network"][key], objects["network"][key])
    assert not torch.equal(objects["anchor"]["network"][key], earlier["anchor"]["network"][key])
    assert weights(folder).keys() == objects["network"].keys()


def test_the_epoch_of_the_best_macro_f1_and_auroc_together_is_kept(trained):
    folder, log = trained
    columns = (re.findall(rf"Metrics -- .*\bval_{name}: ([\d.]+)", log) for name in ("auroc", "macro_f1", "f1_auroc"))
    epochs = [tuple(map(float, epoch)) for epoch in zip(*columns, strict=True)]
    assert len(epochs) == 3
    for auroc, macro_f1, together in epochs:
        assert together == pytest.approx((auroc + macro_f1) / 2, abs=1e-4)
    best = checkpoint(folder, 3)["best_model"]
    assert best["best"] == pytest.approx(max(epoch[2] for epoch in epochs), abs=1e-4)


def test_the_learning_rate_falls_to_0_with_every_step(trained):
    folder, _ = trained
    objects = checkpoint(folder, 3)
    assert objects["lr_scheduler"]["last_epoch"] == objects["lr_scheduler"]["T_max"] == objects["anchor"]["steps"]
    assert objects["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-9)


def test_validation_follows_the_attention_from_epoch_to_epoch(trained, cohort):
    folder, log = trained
    epochs = json.loads((folder / "eval" / "attention_stability.json").read_text())["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert epochs[0]["jsd"] is None
    assert all(epoch["jsd"] >= 0 for epoch in epochs[1:])
    assert {epoch["cases"] for epoch in epochs} == {sum(row["split"] == "val" for row in rows(cohort / "cohort.csv"))}
    assert log.count("attention_jsd") == 2
    assert (folder / "eval" / "attention_stability.png").stat().st_size > 10_000


def test_inference_with_heatmaps_writes_attention_that_sums_to_one(trained, cohort, tmp_path):
    options = {"dataset_dir": cohort, "ckpt_path": trained[0] / "models" / "model.pt", "output_dir": tmp_path}
    options |= {"cohort_file": cohort / "cohort.csv", "split": "test", "heatmap_formats": "['geojson']"}
    run_bundle(NAME, ["inference", "inference_heatmap"], cwd=tmp_path, encoder="synthetic", **options)
    maps = sorted((tmp_path / "heatmaps").glob("*.h5"))
    assert {path.stem for path in maps} == {
        row["slide_id"] for row in rows(cohort / "cohort.csv") if row["split"] == "test"
    }
    for path in maps:
        assert Heatmap.load(path).scores.sum() == pytest.approx(1, abs=1e-3)


def test_a_real_slide_goes_from_file_to_heatmap(tmp_path):
    slide = shared("data/wsi") / "CMU-1-Small-Region.svs"
    files = ["inference", "inference_heatmap", "inference_slides"]
    run_bundle(NAME, files, cwd=tmp_path, dataset_dir=slide, output_dir=tmp_path)
    assert len(rows(tmp_path / "predictions.csv")) == 1
    assert len(Heatmap.load(tmp_path / "heatmaps" / "CMU-1-Small-Region.h5").scores) > 20
    assert (tmp_path / "heatmaps" / "CMU-1-Small-Region.png").stat().st_size > 10_000


def test_evaluation_with_masks_tells_how_well_slides_are_localised(tmp_path):
    from monai_mil.embedding import embed_cohort
    from monai_mil.synthetic import make_slide_cohort

    table = make_slide_cohort(tmp_path, num_slides=6, size=(2048, 2048), fractions=(0.34, 0.33, 0.33))
    embed_cohort(table, tmp_path / "bags", "texture")
    files = ["train", "evaluate", "localise"]
    run_bundle(NAME, files, cwd=tmp_path, dataset_dir=tmp_path, output_dir=tmp_path / "eval", split="train")
    report = json.loads((tmp_path / "eval" / "localisation.json").read_text())
    assert report["failures"] == []
    assert report["tumour_slides"] >= 1
    assert report["dice"]["value"] > 0.5
    assert (tmp_path / "eval" / "metrics.json").exists()
