"""Every bundle at work, as a user runs it: trained, stopped, resumed, evaluated, exported, by one process or two."""

import json
import shutil
import signal
import time

import pytest
import torch

from tests.bundles.common import (
    BUNDLES,
    EXAMPLES,
    NAMES,
    affordable,
    aurocs,
    checkpoint,
    losses,
    rows,
    run_bundle,
    train,
    weights,
)
from tests.conftest import ROOT
from tests.processes import environment_of, run, run_alone, run_by_torchrun, run_together, start

pytestmark = pytest.mark.parametrize("name", NAMES)


def split_of(name, cohort, split):
    return {row[EXAMPLES[name].case_id] for row in rows(cohort / "cohort.csv") if row["split"] == split}


def predictions(name, folder):
    return {row[EXAMPLES[name].case_id]: row for row in rows(folder / "predictions.csv")}


def test_training_learns_and_keeps_a_bare_state_dict(name, trained):
    folder, log = trained
    assert aurocs(log)[-1] > 0.9
    third = len(losses(log)) // 3  # of single bags, some of which are hard
    assert sum(losses(log)[-third:]) < sum(losses(log)[:third])
    assert all(isinstance(value, torch.Tensor) for value in weights(folder).values())


def test_evaluation_writes_metrics_and_predictions_of_the_test_split(name, evaluated, cohort):
    figures = dict(line.split(",") for line in (evaluated / "eval" / "metrics.csv").read_text().splitlines())
    assert float(figures["test_auroc"]) > 0.9
    assert not any(figure.startswith("val_") for figure in figures)
    report = json.loads((evaluated / "eval" / "metrics.json").read_text())
    assert report["cases"] == len(split_of(name, cohort, "test"))
    assert report["auroc"]["low"] <= report["auroc"]["value"] <= report["auroc"]["high"]
    found = predictions(name, evaluated / "eval")
    assert found.keys() == split_of(name, cohort, "test")
    assert {row["label"] for row in found.values()} == set(EXAMPLES[name].classes)


def infer(name, cohort, trained, folder, **options):
    given = {**EXAMPLES[name].inputs, "dataset_dir": cohort}
    given |= {"ckpt_path": trained[0] / "models" / "model.pt", "output_dir": folder}
    return run_bundle(name, ["inference"], cwd=folder, **(given | options))


def test_inference_needs_nothing_but_bags_and_writes_one_row_a_case(name, trained, cohort, tmp_path):
    infer(name, cohort, trained, tmp_path)
    found = predictions(name, tmp_path)
    assert found.keys() == {path.stem for path in (cohort / EXAMPLES[name].bag_folder).glob("*.h5")}
    for row in found.values():
        assert sum(float(row[f"prob_{label}"]) for label in EXAMPLES[name].classes) == pytest.approx(1, abs=1e-4)


def assert_equal(found, expected):
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def newest_checkpoint(folder):
    names = (path.stem for path in (folder / "models" / "checkpoints").glob("checkpoint_epoch=*.pt"))
    return max((int(name.removeprefix("checkpoint_epoch=")) for name in names), default=0)


def killed(name, cohort, folder):
    """A run of three epochs that is killed once the checkpoint of the first stands; False if it was too fast."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    process = train(name, folder, cohort, epochs=3, run=start)
    deadline = time.monotonic() + 120
    while newest_checkpoint(folder) < 1:
        assert process.poll() is None, "training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    return process.wait() == -signal.SIGKILL and newest_checkpoint(folder) < 3


def test_a_run_killed_in_an_epoch_resumes_to_the_same_weights(name, trained, cohort, tmp_path):
    """It is then in the second epoch, or a little later. Both runs were forks; it goes on by the command itself."""
    (whole, log), resumed = trained, tmp_path / "killed"
    assert any(killed(name, cohort, resumed) for _ in range(3))
    again = losses(train(name, resumed, cohort, epochs=3, resume=True, run=run_alone).stdout)
    assert again
    assert again == losses(log)[-len(again) :]
    assert_equal(weights(resumed), weights(whole))
    assert_equal(*(checkpoint(folder, 3)["network"] for folder in (resumed, whole)))


def results(name, folder):
    """The predictions and reports of an evaluation, as numbers and texts by their places."""
    reports = {path.name: json.loads(path.read_text()) for path in (folder / "eval").glob("*.json")}
    patients = rows(folder / "eval" / "patients.csv")
    return dict(leaves({"predictions": predictions(name, folder / "eval"), "patients": patients, **reports}))


def test_two_processes_evaluate_as_one_does(name, evaluated, cohort, tmp_path):
    shutil.copytree(evaluated / "models", tmp_path / "models")
    files = ("train", "evaluate", "multi_gpu_evaluate")
    train(name, tmp_path, cohort, epochs=3, files=files, run=run_together, patient_level="max")
    one, two = results(name, evaluated), results(name, tmp_path)
    assert one.keys() == two.keys()
    for place, value in one.items():  # processes pad their batches differently, which changes the last digit
        assert two[place] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), place
    assert len(predictions(name, tmp_path / "eval")) == len(split_of(name, cohort, "test"))


def leaves(results, place=""):
    """Every value of nested results with its place; numbers written as text are numbers."""
    if isinstance(results, dict | list):
        for key, value in results.items() if isinstance(results, dict) else enumerate(results):
            yield from leaves(value, f"{place}/{key}")
    else:
        try:
            yield place, float(results)
        except (TypeError, ValueError):
            yield place, results


def test_two_processes_train_one_model(name, cohort, tmp_path):
    done = train(name, tmp_path, cohort, epochs=1, files=("train", "multi_gpu_train"), run=run_by_torchrun)
    assert not any(key.startswith("module.") for key in weights(tmp_path))
    assert len(aurocs(done.stdout)) == 1, "only the first process reports"


def test_the_exported_bundle_needs_only_its_own_folder(name, trained, cohort, tmp_path):
    exported = tmp_path / name
    assert run(ROOT / "scripts" / "export_zoo.py", name, tmp_path).returncode == 0
    (exported / "models" / "model.json").unlink()  # the cohort is none that these weights were trained for
    checks = (
        "import monai_mil, sys; from monai.bundle import verify_net_in_out, run, load;"
        f"assert monai_mil.__file__.startswith({str(exported)!r}), monai_mil.__file__;"
        "args = dict(net_id='network_def', meta_file='configs/metadata.json', config_file='configs/inference.json');"
        f"verify_net_in_out(**args, device='cpu', any={affordable(name, 500)}, n={affordable(name, 500)});"
        f"run(config_file='configs/inference.json', dataset_dir={str(cohort)!r},"
        f"encoder='synthetic', output_dir='eval', **{dict(EXAMPLES[name].bags)})"
    )
    done = run("-c", checks, folder=exported, environment=environment_of(PYTHONPATH=exported))
    assert done.returncode == 0, done.stderr[-3000:]
    assert rows(exported / "eval" / "predictions.csv")


@pytest.mark.parametrize(
    "verb",
    [
        ["verify_net_in_out", "--net_id", "network_def", "--any", "{any}", "--n", "7", "--device", "cpu"],
        ["ckpt_export", "--net_id", "network_def", "--filepath", "{out}/model.ts", "--ckpt_file", "models/model.pt"],
    ],
)
def test_the_verbs_work_from_the_bundle_s_folder(name, verb, tmp_path):
    words = ["monai.bundle", *(word.format(out=tmp_path, any=affordable(name, 777)) for word in verb)]
    words += ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    done = run("-m", *words, folder=BUNDLES / name)
    assert done.returncode == 0, done.stderr[-3000:]
