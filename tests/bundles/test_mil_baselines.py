"""The bundle mil_baselines at work: trained, stopped, resumed, evaluated, and run on bags and on slides."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from monai_mil.heatmaps import Heatmap
from tests.bundles.common import BUNDLES, config, network_width, run_bundle
from tests.conftest import ROOT, shared

NAME = "mil_baselines"


@pytest.fixture(scope="module")
def cohort(cohort_of):
    return cohort_of(NAME)


@pytest.fixture(scope="module")
def trained(cohort, tmp_path_factory):
    """A run of three epochs, its folder and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(folder, cohort, epochs=3).stdout


def train(folder, cohort, *, epochs, files=("train",), **options):
    places = {"dataset_dir": cohort, "ckpt_dir": folder / "models", "output_dir": folder / "eval"}
    overrides = {"encoder": "synthetic", "train::trainer::max_epochs": epochs, **places}
    return run_bundle(NAME, list(files), cwd=folder, **(overrides | options))


def losses(log):
    return [float(value) for value in re.findall(r"train_loss: ([\d.]+)", log)]


def aurocs(log, split="val"):
    return [float(value) for value in re.findall(rf"Metrics -- {split}_auroc: ([\d.]+)", log)]


def weights(folder):
    return torch.load(folder / "models" / "model.pt", weights_only=True)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_learns_and_keeps_a_bare_state_dict(trained):
    folder, log = trained
    assert aurocs(log)[-1] > 0.9
    assert losses(log)[-1] < losses(log)[0]
    assert all(isinstance(value, torch.Tensor) for value in weights(folder).values())


def test_evaluation_writes_metrics_and_predictions_of_the_test_split(trained, cohort):
    folder, _ = trained
    train(folder, cohort, epochs=3, files=("train", "evaluate"))
    assert float((folder / "eval" / "metrics.csv").read_text().split(",")[1]) > 0.9
    report = json.loads((folder / "eval" / "metrics.json").read_text())
    assert report["cases"] == len(split_of(cohort, "test"))
    assert report["auroc"]["low"] <= report["auroc"]["value"] <= report["auroc"]["high"]
    predictions = rows(folder / "eval" / "predictions.csv")
    assert {row["slide_id"] for row in predictions} == split_of(cohort, "test")
    assert all(row["label"] in ("normal", "tumor") for row in predictions)


def split_of(cohort, split):
    return {row["slide_id"] for row in rows(cohort / "cohort.csv") if row["split"] == split}


def test_inference_needs_nothing_but_bags_and_writes_one_row_a_slide(trained, cohort, tmp_path):
    folder, _ = trained
    options = {"dataset_dir": cohort, "ckpt_path": folder / "models" / "model.pt", "output_dir": tmp_path}
    run_bundle(NAME, ["inference"], cwd=tmp_path, encoder="synthetic", **options)
    predictions = rows(tmp_path / "predictions.csv")
    assert len(predictions) == len(list((cohort / "bags").glob("*.h5")))
    for row in predictions:
        assert float(row["prob_normal"]) + float(row["prob_tumor"]) == pytest.approx(1, abs=1e-4)


def test_inference_with_heatmaps_writes_attention_that_sums_to_one(trained, cohort, tmp_path):
    folder, _ = trained
    options = {"dataset_dir": cohort, "ckpt_path": folder / "models" / "model.pt", "output_dir": tmp_path}
    options |= {"cohort_file": cohort / "cohort.csv", "split": "test", "heatmap_formats": "['geojson']"}
    run_bundle(NAME, ["inference", "inference_heatmap"], cwd=tmp_path, encoder="synthetic", **options)
    maps = sorted((tmp_path / "heatmaps").glob("*.h5"))
    assert {path.stem for path in maps} == split_of(cohort, "test")
    for path in maps:
        assert Heatmap.load(path).scores.sum() == pytest.approx(1, abs=1e-3)
        assert json.loads(path.with_suffix(".geojson").read_text())["type"] == "FeatureCollection"


@pytest.mark.parametrize("method", ["abmil", "mean_pooling", "max_pooling"])
def test_one_key_chooses_the_method(method, cohort, tmp_path):
    log = train(tmp_path, cohort, epochs=15, network_def=f"%methods::{method}").stdout
    assert aurocs(log, "train")[-1] > 0.8
    expected = {"abmil": "score.weight", "mean_pooling": "classifier.weight", "max_pooling": "classifier.weight"}
    assert expected[method] in weights(tmp_path)


def test_several_labels_of_which_some_are_missing_train(tmp_path):
    from monai_mil.bags import make_bag_cohort

    table = make_bag_cohort(tmp_path, num_bags=40, width=16, seed=1)
    lines = table.read_text().splitlines()
    out = [lines[0].replace("label", "tumor,second")]
    for index, line in enumerate(lines[1:]):
        before, label = line.rsplit(",", 1)
        out.append(f"{before},{int(label == 'tumor')},{'' if index % 3 == 0 else index % 2}")
    table.write_text("\n".join(out) + "\n")
    columns = "['tumor', 'second']"
    options = {"label_columns": columns, "class_names": columns, "multi_label": True, "in_channels": 16}
    log = train(tmp_path, tmp_path, epochs=3, **options).stdout
    assert aurocs(log)
    train(tmp_path, tmp_path, epochs=3, files=("train", "evaluate"), **options)
    assert {"prob_tumor", "prob_second"} <= rows(tmp_path / "eval" / "predictions.csv")[0].keys()


def test_two_runs_with_one_seed_are_the_same(trained, cohort, tmp_path):
    folder, log = trained
    again = train(tmp_path, cohort, epochs=3).stdout
    assert losses(again) == losses(log)
    for name, value in weights(folder).items():
        assert torch.equal(weights(tmp_path)[name], value), name


def newest_checkpoint(folder):
    names = (path.stem for path in (folder / "models" / "checkpoints").glob("checkpoint_epoch=*.pt"))
    return max((int(name.removeprefix("checkpoint_epoch=")) for name in names), default=0)


def test_a_run_killed_in_an_epoch_resumes_to_the_same_weights(cohort, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    train(whole, cohort, epochs=10)

    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config(NAME, "train"))]
    options = {"bundle_root": BUNDLES / NAME, "dataset_dir": cohort, "encoder": "synthetic"}
    options |= {"ckpt_dir": killed / "models", "output_dir": killed / "eval", "train::trainer::max_epochs": 10}
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    # Killed once the checkpoint of epoch 3 stands: the run is then somewhere in epoch 4, or a little later.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 120
    while newest_checkpoint(killed) < 3:
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert newest_checkpoint(killed) < 10

    train(killed, cohort, epochs=10, resume=True)
    for name, value in weights(whole).items():
        assert torch.equal(weights(killed)[name], value), name


def train_together(folder, cohort, **options):
    """The same with two processes, tried twice: gloo itself now and then aborts at the interpreter's exit."""
    for _ in range(2):
        done = train(folder, cohort, processes=2, check=False, **options)
        if done.returncode == 0:
            return done
    raise AssertionError(done.stdout[-2000:] + done.stderr[-4000:])


def test_two_processes_evaluate_as_one_does(trained, cohort, tmp_path):
    shutil.copytree(trained[0] / "models", tmp_path / "models")
    found = []
    for run, files in ((train, ()), (train_together, ("multi_gpu_evaluate",))):
        run(tmp_path, cohort, epochs=3, files=("train", "evaluate", *files))
        predictions = {row["slide_id"]: row for row in rows(tmp_path / "eval" / "predictions.csv")}
        found.append((predictions, json.loads((tmp_path / "eval" / "metrics.json").read_text())["auroc"]["value"]))
    assert found[0] == found[1]
    assert len(found[0][0]) == len(split_of(cohort, "test"))


def test_two_processes_train_one_model(cohort, tmp_path):
    done = train_together(tmp_path, cohort, epochs=2, files=("train", "multi_gpu_train"))
    assert not any(name.startswith("module.") for name in weights(tmp_path))
    assert len(aurocs(done.stdout)) == 2, "only the first process reports"


def test_the_exported_bundle_needs_only_its_own_folder(cohort, tmp_path):
    exported = tmp_path / NAME
    subprocess.run(
        [sys.executable, ROOT / "scripts" / "export_zoo.py", NAME, tmp_path], check=True, capture_output=True
    )
    checks = (
        "import monai_mil, sys; from monai.bundle import verify_net_in_out, run, load;"
        f"assert monai_mil.__file__.startswith({str(exported)!r}), monai_mil.__file__;"
        "args = dict(net_id='network_def', meta_file='configs/metadata.json', config_file='configs/inference.json');"
        "[verify_net_in_out(**args, device='cpu', any=n) for n in (1, 2, 5000)];"
        f"run(config_file='configs/inference.json', dataset_dir={str(cohort)!r},"
        "encoder='synthetic', output_dir='eval')"
    )
    environment = os.environ | {"PYTHONPATH": str(exported), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", checks], cwd=exported, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows(exported / "eval" / "predictions.csv")


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
    assert [row["slide_id"] for row in rows(tmp_path / "eval" / "predictions.csv")] == ["CMU-1-Small-Region"]


def test_bad_bags_are_named_and_the_others_are_done(trained, tmp_path):
    import h5py

    from monai_mil.bags import make_bag_cohort, read_cohort

    table = make_bag_cohort(tmp_path, num_bags=12, width=network_width(NAME), seed=2)
    names = [slide.slide_id for slide in read_cohort(table).slides]
    bags = [tmp_path / "bags" / f"{name}.h5" for name in names]
    narrow = make_bag_cohort(tmp_path / "narrow", num_bags=12, width=8, seed=2).parent / "bags"
    with h5py.File(bags[0], "r+") as file:
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

    options["encoder"] = "uni"
    done = run_bundle(NAME, ["inference"], cwd=tmp_path, check=False, **options)
    assert "made by encoder 'synthetic', the network was trained with 'uni'" in done.stderr


def test_mnist_bags_are_learned_as_published(tmp_path):
    options = {"dataset_dir": shared("data/mnist"), "ckpt_dir": tmp_path, "output_dir": tmp_path}
    options["train::trainer::max_epochs"] = 8
    log = run_bundle(NAME, ["train", "mnist_bags"], cwd=tmp_path, **options).stdout
    assert aurocs(log)[-1] >= 0.95


@pytest.mark.parametrize(
    "verb",
    [
        ["verify_net_in_out", "--net_id", "network_def", "--any", "777", "--device", "cpu"],
        ["ckpt_export", "--net_id", "network_def", "--filepath", "{out}/model.ts", "--ckpt_file", "models/model.pt"],
    ],
)
def test_the_verbs_work_from_the_bundle_s_folder(verb, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", *(word.format(out=tmp_path) for word in verb)]
    command += ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    done = subprocess.run(command, cwd=BUNDLES / NAME, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
