"""What only the bundle pathology_insight does: maps of slides, operating points, Dice, Grad-CAM, several labels."""

import json
import shutil

import numpy as np
import pytest

from monai_mil.embedding import embed_cohort
from monai_mil.encoders import get_encoder
from monai_mil.heatmaps import Heatmap
from monai_mil.synthetic import make_bag_cohort, make_slide_cohort
from monai_mil.synthetic.slide_cohort import LESION_RADII
from tests.bundles.common import BUNDLES, aurocs, rows, run_bundle, train

NAME = "pathology_insight"
SHIPPED = BUNDLES / NAME / "models"


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Nine small slides of all three splits, four with a lesion of 160 micrometres, and their bags."""
    folder = tmp_path_factory.mktemp("slides")
    radii = {"moderate": LESION_RADII["moderate"]}
    make_slide_cohort(folder, num_slides=9, seed=11, size=(1536, 1536), lesions=radii, fractions=(0.2, 0.4, 0.4))
    embed_cohort(folder / "cohort.csv", folder / "bags", get_encoder("texture", spatial=True), progress=False)
    return folder


def evaluate(slides, out, *files, **options):
    places = {"dataset_dir": slides, "ckpt_dir": SHIPPED, "output_dir": out}
    return run_bundle(NAME, ["train", "evaluate", *files], cwd=out, **(places | options))


def dice(folder):
    return json.loads((folder / "dice.json").read_text())["slides"]["mean"]["value"]


def test_the_shipped_model_outlines_planted_lesions_better_than_grad_cam_does(slides, tmp_path):
    found = {}
    for name, overlays in (("map", ["localise"]), ("grad_cam", ["localise", "grad_cam"])):
        (tmp_path / name).mkdir()
        evaluate(slides, tmp_path / name, *overlays)
        found[name] = dice(tmp_path / name)
    assert found["map"] > 0.7
    assert found["map"] > found["grad_cam"]


def test_a_threshold_found_on_validation_slides_is_used_on_test_slides(slides, tmp_path):
    for name in ("choose", "chosen"):
        (tmp_path / name).mkdir()
    evaluate(slides, tmp_path / "choose", "localise", split="val", dice_threshold="best")
    evaluate(slides, tmp_path / "chosen", "localise", dice_threshold=tmp_path / "choose" / "dice.json")
    chosen, used = (json.loads((tmp_path / name / "dice.json").read_text()) for name in ("choose", "chosen"))
    assert used["threshold"]["share_of_highest_score"] == chosen["threshold"]["share_of_highest_score"]
    assert dice(tmp_path / "chosen") > 0.7


def test_a_positive_slide_without_truth_is_named_and_the_others_are_measured(slides, tmp_path):
    masks = tmp_path / "masks"
    shutil.copytree(slides / "masks", masks)
    positive = [row["slide_id"] for row in rows(slides / "cohort.csv") if row["split"] == "test" and row["lesion"]]
    for path in masks.glob(f"{positive[0]}*"):
        path.unlink()
    done = evaluate(slides, tmp_path, "localise", truth_dir=masks, check=False)
    assert done.returncode != 0
    assert positive[0] in done.stderr
    assert [row["slide_id"] for row in rows(tmp_path / "dice.csv")] == positive[1:]


@pytest.fixture
def calibrated(slides, tmp_path):
    """The bundle's metadata with an operating point, and that point."""
    metadata = shutil.copy(BUNDLES / NAME / "configs" / "metadata.json", tmp_path / "metadata.json")
    files = ["train", "calibrate"]
    places = {"dataset_dir": slides, "ckpt_dir": SHIPPED, "output_dir": tmp_path}
    run_bundle(NAME, files, cwd=tmp_path, metadata_file=metadata, **places)
    return metadata, json.loads((tmp_path / "metadata.json").read_text())["operating_points"][0]


def test_predictions_and_maps_follow_the_operating_point_of_the_metadata(slides, calibrated, tmp_path):
    metadata, point = calibrated
    files = ["inference", "inference_slides"]
    formats = "['png','geojson','tiff','mask']"
    options = {"dataset_dir": slides / "slides", "output_dir": tmp_path / "out", "heatmap_formats": formats}
    run_bundle(NAME, files, cwd=tmp_path, meta_file=metadata, **options)
    found = rows(tmp_path / "out" / "predictions.csv")
    assert len(found) == 9
    for row in found:
        positive = float(row["prob_tumor"]) >= point
        assert row["pred"] == ("tumor" if positive else "normal")
        heatmap = Heatmap.load(tmp_path / "out" / "heatmaps" / f"{row['slide_id']}.h5")
        assert heatmap.scores.shape[1:] == (14, 14)
        assert np.isfinite(heatmap.threshold) == positive
        assert (heatmap.scores > heatmap.threshold).any() == positive
        regions = json.loads((tmp_path / "out" / "heatmaps" / f"{row['slide_id']}.geojson").read_text())["features"]
        kinds = {feature["properties"]["objectType"] for feature in regions}
        assert ("annotation" in kinds) == positive
    assert {row["pred"] for row in found} == {"tumor", "normal"}


def test_a_slide_read_tile_by_tile_has_the_map_of_its_bag(slides, tmp_path):
    for name, files, place in (("bags", [], slides), ("slides", ["inference_slides"], slides / "slides")):
        (tmp_path / name).mkdir()
        run_bundle(NAME, ["inference", *files], cwd=tmp_path, dataset_dir=place, output_dir=tmp_path / name)
    bags, streamed = (
        {row["slide_id"]: row for row in rows(tmp_path / name / "predictions.csv")} for name in ("bags", "slides")
    )
    assert bags.keys() == streamed.keys()
    for slide_id, row in bags.items():
        assert float(streamed[slide_id]["prob_tumor"]) == pytest.approx(float(row["prob_tumor"]), abs=1e-5)
        one, other = (Heatmap.load(tmp_path / name / "heatmaps" / f"{slide_id}.h5") for name in ("bags", "slides"))
        np.testing.assert_array_equal(one.coords, other.coords)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        assert one.threshold == pytest.approx(other.threshold, abs=1e-5)


def test_four_labels_of_which_some_are_unknown_train_and_are_reported_one_by_one(tmp_path):
    names = "['label_0', 'label_1', 'label_2', 'label_3']"
    make_bag_cohort(tmp_path, num_bags=48, width=38, seed=2, bag_size=(3, 6), grid=(14, 14), multi_label=True)
    options = {"label_columns": names, "class_names": names, "multi_label": True, "label_smoothing": 0.1}
    log = train(NAME, tmp_path, tmp_path, epochs=5, **options).stdout
    assert aurocs(log)[-1] > aurocs(log)[0]
    train(NAME, tmp_path, tmp_path, epochs=5, files=("train", "evaluate"), **options)
    report = json.loads((tmp_path / "eval" / "metrics.json").read_text())["classes"]
    assert list(report) == [f"label_{index}" for index in range(4)]
    assert np.mean([one["auroc"]["value"] for one in report.values()]) > 0.8


def test_bags_of_another_grid_are_refused_with_what_to_do(slides, tmp_path):
    done = evaluate(slides, tmp_path, grid="[16,16]", check=False)
    assert done.returncode != 0
    assert "14" in done.stderr
    assert "16" in done.stderr
