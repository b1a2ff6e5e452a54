"""What only the bundle pathology_hagmil does: slides read lazily, maps of every level, losses and levels of choice."""

import json
import shutil

import numpy as np
import pytest

from monai_mil.embedding import embed_cohort
from monai_mil.heatmaps import Heatmap
from monai_mil.synthetic import make_slide_cohort
from tests.bundles.common import losses, rows, run_bundle, train
from tests.conftest import shared

NAME = "pathology_hagmil"
TILES = {"tile_size": 64, "target_mpp": 0.5}
SEARCH = {"k_eval": 3}


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Six small slides of all three splits and the bags of their levels."""
    folder = tmp_path_factory.mktemp("slides")
    make_slide_cohort(folder, num_slides=6, size=(1536, 1536), fractions=(0.34, 0.33, 0.33))
    embed_cohort(folder / "cohort.csv", folder / "bags", "texture", levels=3, progress=False, **TILES)
    return folder


def infer(folder, files, **options):
    folder.mkdir(exist_ok=True)
    files = ["inference", "inference_heatmap", *files]
    run_bundle(NAME, files, cwd=folder, output_dir=folder, **SEARCH, tile_size=64, **options)
    return {row["slide_id"]: row for row in rows(folder / "predictions.csv")}


def test_slides_read_lazily_get_the_answers_and_maps_of_their_bags(slides, tmp_path):
    stored = infer(tmp_path / "bags", [], dataset_dir=slides, heatmap_formats="[]")
    read = {"dataset_dir": slides / "slides", "target_mpp": 0.5}
    lazy = infer(tmp_path / "slides", ["inference_slides"], heatmap_formats="[]", **read)
    files = ["inference", "inference_slides"]
    run_bundle(NAME, files, cwd=tmp_path, output_dir=tmp_path / "plain", tile_size=64, **SEARCH, **read)
    assert (tmp_path / "plain" / "predictions.csv").read_text() == (tmp_path / "slides" / "predictions.csv").read_text()
    assert stored.keys() == lazy.keys()
    assert len(stored) == 6
    for name, row in stored.items():
        assert float(lazy[name]["prob_tumor"]) == pytest.approx(float(row["prob_tumor"]), abs=1e-5)
        for kind in ("", "_level2", "_level1", "_level0", "_evidence"):
            one, other = (
                Heatmap.load(tmp_path / place / "heatmaps" / f"{name}{kind}.h5") for place in ("bags", "slides")
            )
            np.testing.assert_array_equal(one.coords, other.coords)
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
            assert one.frame == other.frame
        fused = Heatmap.load(tmp_path / "bags" / "heatmaps" / f"{name}.h5")
        assert ((fused.scores > 0) & (fused.scores < 1)).all()
    levels = [len(Heatmap.load(tmp_path / "bags" / "heatmaps" / f"slide_001_level{level}.h5")) for level in (2, 1, 0)]
    assert levels[1:] == [12, 12]
    assert levels[0] > 12


@pytest.mark.parametrize("name", ["CMU-1-Small-Region_pyramid.tif", "tcga"])
def test_real_slides_go_from_file_to_maps(name, tmp_path):
    folder = shared("data/wsi")
    slide = next(folder.glob("TCGA*.svs")) if name == "tcga" else folder / name
    found = infer(tmp_path, ["inference_slides"], dataset_dir=slide, mpp=0.25, target_mpp=0.5)
    (case,) = found
    fused = Heatmap.load(tmp_path / "heatmaps" / f"{case}.h5")
    seen = sum(len(Heatmap.load(tmp_path / "heatmaps" / f"{case}_level{level}.h5")) for level in range(3))
    assert len(fused) > seen > 30
    assert (tmp_path / "heatmaps" / f"{case}.png").stat().st_size > 10_000
    assert (tmp_path / "heatmaps" / f"{case}_level1.png").stat().st_size > 10_000
    assert (tmp_path / "heatmaps" / f"{case}_evidence.geojson").exists()


def test_bags_of_other_tiles_than_the_network_s_are_refused(slides, tmp_path):
    done = run_bundle(NAME, ["inference"], cwd=tmp_path, check=False, dataset_dir=slides, output_dir=tmp_path)
    assert done.returncode != 0
    failed = rows(tmp_path / "failed.csv")
    assert len(failed) == 6
    assert "its tiles are of 64 px, the network's of 128; embed with --tile-size 128" in failed[0]["message"]


def test_evaluation_with_masks_tells_how_well_the_fused_map_finds_lesions(slides, tmp_path):
    files = ["train", "evaluate", "localise"]
    run_bundle(NAME, files, cwd=tmp_path, dataset_dir=slides, output_dir=tmp_path, split="train", **SEARCH)
    report = json.loads((tmp_path / "localisation.json").read_text())
    assert report["failures"] == []
    assert report["tumour_slides"] >= 1
    assert 0 <= report["dice"]["value"] <= 1


def test_other_levels_losses_and_checkpointing_train_too(cohort, tmp_path):
    options = {"levels": 2, "k_train": 4, "k_eval": 5, "checkpoint": True, "bag_dir": cohort / "bags"}
    options |= {"instance_loss::_target_": "monai_mil.losses.TopInstanceSVM"}
    log = train(NAME, tmp_path, cohort, epochs=2, **options).stdout
    values = losses(log)
    assert len(values) > 10
    assert all(np.isfinite(values))


def test_a_bag_whose_levels_do_not_belong_together_is_named_and_left_out(slides, tmp_path):
    bags = tmp_path / "bags"
    shutil.copytree(slides / "bags", bags)
    shutil.copy(bags / "level_0" / "slide_000.h5", bags / "level_0" / "slide_001.h5")
    options = {"dataset_dir": tmp_path, "output_dir": tmp_path / "eval", "tile_size": 64, **SEARCH}
    done = run_bundle(NAME, ["inference"], cwd=tmp_path, check=False, **options)
    assert done.returncode != 0
    assert len(rows(tmp_path / "eval" / "predictions.csv")) == 5
    (failed,) = rows(tmp_path / "eval" / "failed.csv")
    assert failed["slide_id"] == "slide_001"
    assert "no levels of one quadtree" in failed["message"]
