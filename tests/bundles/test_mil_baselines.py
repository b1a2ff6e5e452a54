"""What only mil_baselines does: several methods and labels, the anchor, heatmaps of bags and of slides, MNIST-bags."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_mil.datasets import make_mnist_bags
from monai_mil.heatmaps import Heatmap
from monai_mil.metrics import instance_auroc
from monai_mil.networks import ABMIL, InstanceEncoderMIL, instance_scores
from monai_mil.networks.instance_encoder import LeNetEncoder
from monai_mil.savers import attention_stability
from monai_mil.synthetic import make_bag_cohort
from tests.bundles.common import BUNDLES, aurocs, checkpoint, config, network_width, rows, run_bundle, train, weights
from tests.conftest import shared

NAME = "mil_baselines"


def test_inference_with_heatmaps_writes_attention_that_sums_to_one(trained, cohort, tmp_path):
    folder, _ = trained
    options = {"dataset_dir": cohort, "ckpt_path": folder / "models" / "model.pt", "output_dir": tmp_path}
    options |= {"cohort_file": cohort / "cohort.csv", "split": "test", "heatmap_formats": "['geojson']"}
    run_bundle(NAME, ["inference", "inference_heatmap"], cwd=tmp_path, encoder="synthetic", **options)
    maps = sorted((tmp_path / "heatmaps").glob("*.h5"))
    tested = {row["slide_id"] for row in rows(cohort / "cohort.csv") if row["split"] == "test"}
    assert {path.stem for path in maps} == tested
    for path in maps:
        assert Heatmap.load(path).scores.sum() == pytest.approx(1, abs=1e-3)
        assert json.loads(path.with_suffix(".geojson").read_text())["type"] == "FeatureCollection"


def learned(cohort, folder, *overlays, **options):
    """A few epochs in MONAI's workflow: the best AUROC of the validation and the last value of every loss term."""
    run = ConfigWorkflow(
        config_file=config(NAME, "train", *overlays),
        meta_file=config(NAME, "metadata")[0],
        logging_file=str(BUNDLES / NAME / "configs" / "logging.conf"),
        workflow_type="train",
        bundle_root=str(BUNDLES / NAME),
        dataset_dir=str(cohort),
        ckpt_dir=str(folder / "models"),
        output_dir=str(folder),
        encoder="synthetic",
        **{"train::trainer::max_epochs": 3, "optimizer::lr": 0.003} | SMALLER.get(options.get("method"), {}) | options,
    )
    run.initialize()
    run.run()
    evaluator, loss = (run.parser.get_parsed_content(key) for key in ("validate::evaluator", "loss"))
    return evaluator.state.best_metric, {name: float(value) for name, value in loss.last.items()}


# Every bag is read once: what reading costs is two fifths of so small a training.
READ_ONCE = {f"{step}::dataset::_target_": "CacheDataset" for step in ("train", "validate")} | {
    f"{step}::dataset::progress": False for step in ("train", "validate")
}
METHODS = sorted(path.stem for path in (BUNDLES / NAME / "configs" / "methods").glob("*.json"))
SMALLER = {
    "acmil": {"changes::network::masked": 4},
    "camil": {"changes::network::hidden_dim": 64, "changes::network::landmarks": 16},
    "hdmil": {"changes::network::degree": 3},
    "ibmil": {"optimizer::lr": 0.03},
    "ilra": {"changes::network::hidden_dim": 64},
    "patch_gcn": {"changes::network::dropout": 0, "changes::network::layer_dropout": 0, "optimizer::lr": 0.001},
    "r2t": {"changes::network::hidden_dim": 64},
    "rgmil": {"changes::network::hidden_dim": 64},
    "transmil": {"changes::network::hidden_dim": 64},
    "wikg": {"changes::network::hidden_dim": 64, "optimizer::lr": 0.001},
}
LOSSES = {method: {"bag"} for method in METHODS} | {
    "acmil": {"bag", "branch", "similarity"},
    "aem": {"bag", "entropy"},
    "clam_mb": {"bag", "instance"},
    "clam_sb": {"bag", "instance"},
    "demil": {"bag", "entropy"},
    "dsmil": {"bag", "max_instance"},
    "dtfd_afs": {"bag", "branch"},
    "dtfd_maxmins": {"bag", "branch"},
    "dtfd_maxs": {"bag", "branch"},
    "hdmil": {"bag", "instance", "screening"},
    "mhim": {"bag", "consistency"},
}


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Fewer and smaller bags than the bundle's example has, from which every method learns in three epochs."""
    recipe = {"bag_size": (20, 60), "planted": 0.4, "fractions": (0.6, 0.3, 0.1)}
    return make_bag_cohort(tmp_path_factory.mktemp("few"), num_bags=24, width=64, seed=2, **recipe).parent


@pytest.mark.parametrize("method", LOSSES)
def test_one_key_chooses_the_method_and_its_loss(method, few, tmp_path):
    auroc, terms = learned(few, tmp_path, method=method, in_channels=64, **READ_ONCE)
    assert auroc >= 0.9
    assert terms.keys() == LOSSES[method]


ATTENDING = [method for method in LOSSES if "pooling" not in method and method != "psmil"]  # psmil begins uniform


@pytest.mark.parametrize("method", ATTENDING)
def test_an_overlay_adds_the_anchor_to_every_network_with_attention(method, few, tmp_path, monkeypatch):
    monkeypatch.setattr(attention_stability, "draw_stability", lambda *_: None)  # a picture an epoch, tested elsewhere
    auroc, terms = learned(few, tmp_path, "anchor", method=method, in_channels=64, **READ_ONCE)
    assert auroc >= 0.9
    assert terms["anchor"] > 0
    assert len(movement(tmp_path)) == 3


def test_monai_finds_the_properties_of_a_training_beside_the_anchor(cohort, tmp_path):
    places = {"dataset_dir": str(cohort), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path)}
    run = ConfigWorkflow(
        config_file=config(NAME, "train", "anchor"),
        meta_file=config(NAME, "metadata")[0],
        logging_file=str(BUNDLES / NAME / "configs" / "logging.conf"),
        workflow_type="train",
        bundle_root=str(BUNDLES / NAME),
        **places,
    )
    run.initialize()
    assert not run.check_properties()


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    from monai_mil.synthetic import make_survival_cohort

    recipe = {"num_bags": 60, "width": 16, "bag_size": (10, 30), "planted": 0.4, "seed": 3}
    return make_survival_cohort(tmp_path_factory.mktemp("followed"), **recipe).parent


@pytest.mark.parametrize("method", LOSSES)
def test_every_network_learns_survival(method, followed, tmp_path):
    options = {"in_channels": 16, "train::trainer::max_epochs": 2} | READ_ONCE
    concordance, terms = learned(followed, tmp_path, "survival", method=method, **options)
    assert concordance >= 0.7
    assert terms.keys() == LOSSES[method] - {"instance"}, "CLAM does without its instance branch"


def movement(folder):
    """How far attention moved, epoch by epoch."""
    epochs = json.loads((folder / "attention_stability.json").read_text())["epochs"]
    return {epoch["epoch"]: epoch["jsd"] for epoch in epochs}


def test_a_resumed_run_goes_on_with_the_anchor_and_with_how_far_attention_moved(cohort, tmp_path):
    for epochs in (2, 3):
        options = {"train::trainer::max_epochs": epochs, "resume": epochs > 2, "anchor_temperature": 0.5}
        learned(cohort, tmp_path, "anchor", **options)
    assert movement(tmp_path).keys() == {1, 2, 3}
    assert movement(tmp_path)[3] > 0
    bags = [row for row in rows(cohort / "cohort.csv") if row["split"] == "train"]
    assert checkpoint(tmp_path, 3)["anchor"]["steps"] == 3 * len(bags)


def test_a_training_whose_losses_are_no_numbers_is_ended(cohort, tmp_path):
    with pytest.raises(RuntimeError) as told, pytest.warns(UserWarning, match="its step is left out"):
        learned(cohort, tmp_path, loss="$lambda output, label: output['logits'].sum() * float('nan')")
    assert "not finite in 10 steps in a row" in str(told.value.__cause__)


def test_the_anchor_is_in_the_checkpoint_and_not_in_the_model_that_predicts(cohort, tmp_path):
    options = {"method": "clam_sb", "anchor_target": "softmax", "anchor_momentum": 0.9}
    learned(cohort, tmp_path, "anchor", **options, **{"train::trainer::max_epochs": 2})
    earlier, objects = (checkpoint(tmp_path, epoch) for epoch in (1, 2))
    bags = [row for row in rows(cohort / "cohort.csv") if row["split"] == "train"]
    assert objects["anchor"]["steps"] == 2 * len(bags)
    key = "score.weight"
    assert not torch.equal(objects["anchor"]["network"][key], objects["network"][key])
    assert not torch.equal(objects["anchor"]["network"][key], earlier["anchor"]["network"][key])
    assert weights(tmp_path).keys() == objects["network"].keys()
    options = {"dataset_dir": cohort, "ckpt_path": tmp_path / "models" / "model.pt", "output_dir": tmp_path}
    run_bundle(NAME, ["inference"], cwd=tmp_path, encoder="synthetic", method="clam_sb", **options)
    assert len(rows(tmp_path / "predictions.csv")) == len(rows(cohort / "cohort.csv"))


def test_evaluation_with_masks_compares_maps_as_the_asmil_paper_does(tmp_path):
    from monai_mil.embedding import embed_cohort
    from monai_mil.synthetic import make_slide_cohort

    table = make_slide_cohort(tmp_path, num_slides=6, size=(2048, 2048), fractions=(0.34, 0.33, 0.33))
    embed_cohort(table, tmp_path / "bags", "texture")
    options = {"dataset_dir": tmp_path, "output_dir": tmp_path / "eval", "split": "train"}
    run_bundle(NAME, ["train", "evaluate", "localise"], cwd=tmp_path, froc_denominator="normal", **options)
    report = json.loads((tmp_path / "eval" / "localisation.json").read_text())
    assert report["failures"] == []
    assert report["tumour_slides"] >= 1
    assert report["froc"]["slides"] == report["normal_slides"]
    assert report["dice"]["value"] > 0.2
    assert len(rows(tmp_path / "eval" / "localisation.csv")) == report["tumour_slides"] + report["normal_slides"]
    assert (tmp_path / "eval" / "dice.json").exists()


def test_several_labels_of_which_some_are_missing_train(tmp_path):
    from monai_mil.synthetic import make_bag_cohort

    table = make_bag_cohort(tmp_path, num_bags=40, width=16, seed=1)
    lines = table.read_text().splitlines()
    out = [lines[0].replace("label", "tumor,second")]
    for index, line in enumerate(lines[1:]):
        before, label = line.rsplit(",", 1)
        out.append(f"{before},{int(label == 'tumor')},{'' if index % 3 == 0 else index % 2}")
    table.write_text("\n".join(out) + "\n")
    columns = "['tumor', 'second']"
    options = {"label_columns": columns, "class_names": columns, "multi_label": True, "in_channels": 16}
    log = train(NAME, tmp_path, tmp_path, epochs=3, **options).stdout
    assert aurocs(log)
    train(NAME, tmp_path, tmp_path, epochs=3, files=("train", "evaluate"), **options)
    assert {"prob_tumor", "prob_second"} <= rows(tmp_path / "eval" / "predictions.csv")[0].keys()


def slide_folder(tmp_path, *names):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in names:
        shutil.copy(shared("data/wsi") / name, folder)
    return folder


def infer_slides(folder, out, **options):
    files = ["inference", "inference_heatmap", "inference_slides"]
    return run_bundle(NAME, files, cwd=out, dataset_dir=folder, output_dir=out / "eval", **options)


def test_real_slides_go_from_file_to_heatmap(tmp_path):
    folder = slide_folder(tmp_path, "CMU-1-Small-Region.svs", "CMU-1-Small-Region_pyramid.tif")
    infer_slides(folder, tmp_path)
    assert len(rows(tmp_path / "eval" / "predictions.csv")) == 2
    one, two = (Heatmap.load(path) for path in sorted((tmp_path / "eval" / "heatmaps").glob("*.h5")))
    assert one.frame.level0_size == two.frame.level0_size == (2220, 2967)
    assert len(one.scores) > 20
    for picture in (tmp_path / "eval" / "heatmaps").glob("*.png"):
        assert picture.stat().st_size > 10_000


def test_a_dicom_slide_goes_from_file_to_heatmap(tmp_path):
    slide = shared("data/wsi/wsi_jpeg.dcm")
    infer_slides(slide, tmp_path, target_mpp=16.8, tile_size=64)
    assert Heatmap.load(tmp_path / "eval" / "heatmaps" / "wsi_jpeg.h5").frame.level0_size == (957, 715)


def test_a_slide_without_mpp_is_named_and_works_once_it_is_given(tmp_path):
    folder = slide_folder(tmp_path, "TCGA-CR-7395-01A-01-TS1.svs", "CMU-1-Small-Region.svs")
    done = infer_slides(folder, tmp_path, check=False)
    assert done.returncode != 0
    assert re.search(r"TCGA-CR-7395.*no pixel size \(mpp\) in the file; pass --mpp", done.stderr)
    assert [row["slide_id"] for row in rows(tmp_path / "eval" / "predictions.csv")] == ["CMU-1-Small-Region"]
    infer_slides(folder, tmp_path, mpp=0.5)
    assert len(rows(tmp_path / "eval" / "predictions.csv")) == 2


def test_bad_slides_are_named_and_the_others_are_done(tmp_path):
    import tifffile

    folder = slide_folder(tmp_path, "CMU-1-Small-Region.svs")
    (folder / "text.svs").write_text("not a slide")
    whole = (folder / "CMU-1-Small-Region.svs").read_bytes()
    (folder / "truncated.svs").write_bytes(whole[: len(whole) // 3])
    white = np.full((1024, 1024, 3), 255, np.uint8)
    tifffile.imwrite(
        folder / "white.tif", white, tile=(256, 256), photometric="rgb", resolution=(20000, 20000), resolutionunit=3
    )
    done = infer_slides(folder, tmp_path, check=False)
    assert done.returncode != 0
    for name in ("text.svs", "truncated.svs", "white.tif"):
        assert done.stderr.count(name) >= 1, name
    assert "3 of 4 cases failed" in done.stderr
    failed = {row["slide_id"]: row["status"] for row in rows(tmp_path / "eval" / "failed.csv")}
    assert failed == {"text": "unreadable", "truncated": "unreadable", "white": "no tissue"}
    assert [row["slide_id"] for row in rows(tmp_path / "eval" / "predictions.csv")] == ["CMU-1-Small-Region"]


def test_bad_bags_are_named_and_the_others_are_done(trained, tmp_path):
    import h5py

    from monai_mil.cohorts import read_cohort
    from monai_mil.synthetic import make_bag_cohort

    table = make_bag_cohort(tmp_path, num_bags=12, width=network_width(NAME), seed=0)
    names = [slide.slide_id for slide in read_cohort(table).slides]
    bags = [tmp_path / "bags" / f"{name}.h5" for name in names]
    narrow = make_bag_cohort(tmp_path / "narrow", num_bags=12, width=8, seed=2).parent / "bags"
    with h5py.File(bags[0], "r+") as file:
        del file["feature_checksums"]  # as other programs write it
        file["features"][3, 5] = np.nan
    shutil.copy(narrow / bags[1].name, bags[1])
    bags[2].write_bytes(bags[2].read_bytes()[:3000])
    bags[3].unlink()
    options = {"dataset_dir": tmp_path, "cohort_file": table, "output_dir": tmp_path, "encoder": "synthetic"}
    options["ckpt_path"] = trained[0] / "models" / "model.pt"
    done = run_bundle(NAME, ["inference"], cwd=tmp_path, check=False, **options)
    assert done.returncode != 0
    assert "4 of 12 cases failed" in done.stderr
    summary = done.stderr[done.stderr.rindex("cases failed") :]
    for bag, reason in zip(
        bags, ["NaN", "8 feature channels", "not an HDF5 file|truncated", "no such file"], strict=False
    ):
        assert re.search(rf"{bag.name}.*({reason})", summary), (bag.name, summary)
    assert [row["slide_id"] for row in rows(tmp_path / "predictions.csv")] == names[4:]
    assert [row["slide_id"] for row in rows(tmp_path / "failed.csv")] == names[:4]

    options["encoder"] = "uni"
    done = run_bundle(NAME, ["inference"], cwd=tmp_path, check=False, **options)
    assert "was trained with encoder 'synthetic', and this run says 'uni'" in done.stderr


def test_mnist_bags_are_learned_as_published_and_attention_finds_the_nines(tmp_path):
    options = {"dataset_dir": shared("data/mnist"), "ckpt_dir": tmp_path, "output_dir": tmp_path}
    options |= {"train::trainer::max_epochs": 4, "val_interval": 4}
    options["validate::dataset::data"] = "$datasets.make_mnist_bags(@mnist, split='test', num_bags=200, seed=@seed)"
    log = run_bundle(NAME, ["train", "mnist_bags"], cwd=tmp_path, **options).stdout
    assert aurocs(log)[-1] >= 0.95
    network = InstanceEncoderMIL(LeNetEncoder(), ABMIL(800, 2, hidden_dim=500, attention_dim=128)).eval()
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    bags = make_mnist_bags(shared("data/mnist/mnist.npz"), split="test", num_bags=200, mean_size=10, std_size=2)
    with torch.no_grad():
        attention = [instance_scores(network(bag["image"][None], return_dict=True))[0, 1].numpy() for bag in bags]
    assert instance_auroc(attention, [bag["instance_labels"].numpy() for bag in bags]) >= 0.95
