"""However bags are loaded, a bundle says the same; and broken ones can be left out in every bundle."""

import os
import shutil

import h5py
import pytest

from tests.bundles.common import EXAMPLES, NAMES, rows, train, workflow
from tests.processes import run_together

TOGETHER = {"batch_size": 3, "num_workers": 2, "persistent_workers": True, "pin_memory": True}
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")


def loading(loader):
    return {f"{loader}::{key}": value for key, value in TOGETHER.items()}


def without_training(options):
    return {key: value for key, value in options.items() if "::" not in key and key not in ("ckpt_dir", "batch_size")}


def predicted(folder, name):
    return {row[EXAMPLES[name].case_id]: row for row in rows(folder / "predictions.csv")}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for case, row in expected.items():
        for column, value in row.items():
            if column.startswith("prob_"):
                assert float(found[case][column]) == pytest.approx(float(value), abs=1e-5)
            else:
                assert found[case][column] == value


@pytest.mark.parametrize("use", ["inference", "evaluate"])
@pytest.mark.parametrize("name", NAMES)
def test_ragged_batches_and_workers_say_what_single_bags_do(name, use, evaluated, cohort, tmp_path):
    given = EXAMPLES[name].options(cohort, evaluated) | {"output_dir": tmp_path}
    if use == "inference":
        given |= {"ckpt_path": evaluated / "models" / "model.pt", "cohort_file": cohort / "cohort.csv", "split": "test"}
        files, loader, given = [use], "dataloader", without_training(given)
    else:
        files, loader = ["train", use], "validate::dataloader"
    made = workflow(name, files, **given, **loading(loader))
    made.run()
    made.parser.get_parsed_content(loader)._iterator._shutdown_workers()  # a garbage collection waits for them
    assert_same(predicted(tmp_path, name), predicted(evaluated / "eval", name))


def apart(path):
    """The file as one of its own, no longer the cohort's."""
    shutil.copy(path, path.with_suffix(".own"))
    return path.with_suffix(".own").replace(path)


def without_numbers(path):
    apart(path)
    with h5py.File(path, "r+") as file:
        del file["feature_checksums"]  # as other programs write it
        features = file["features"]
        features[0] = float("nan") if features.dtype.kind == "f" else 0
        if "scale" in file:
            file["scale"][0] = float("nan")


def with_broken_bags(name, cohort, copy):
    """A copy of the cohort: two of its training bags are broken, and one of each other split; names by split."""
    example = EXAMPLES[name]
    shutil.copytree(cohort, copy, copy_function=os.link)
    bags = {
        split: [row[example.case_id] for row in rows(copy / "cohort.csv") if row["split"] == split]
        for split in ("train", "val", "test")
    }
    place = copy / example.bag_folder
    (place / f"{bags['train'][0]}.h5").unlink()
    apart(place / f"{bags['val'][0]}.h5").write_bytes(b"no bag")
    without_numbers(place / f"{bags['train'][1]}.h5")
    without_numbers(place / f"{bags['test'][0]}.h5")
    return bags


def failed(name, folder):
    return [row[EXAMPLES[name].case_id] for row in rows(folder / "eval" / "failed.csv")]


@pytest.mark.parametrize("name", NAMES)
def test_broken_bags_are_left_out_of_training_and_evaluation(name, cohort, tmp_path):
    bags = with_broken_bags(name, cohort, tmp_path / "cohort")
    given = EXAMPLES[name].options(tmp_path / "cohort", tmp_path) | {"skip_broken": True}

    def taken(made, step):
        return [item[EXAMPLES[name].case_id] for item in made.parser.get_parsed_content(f"{step}::dataset").data]

    made = workflow(name, ["train"], **given)
    assert (taken(made, "train"), taken(made, "validate")) == (bags["train"][2:], bags["val"][1:])
    assert failed(name, tmp_path) == [*bags["train"][:2], bags["val"][0]]
    made = workflow(name, ["train", "evaluate"], **given)
    assert taken(made, "validate") == bags["test"][1:]
    assert failed(name, tmp_path) == bags["test"][:1]


@pytest.mark.parametrize("name", ["mil_baselines"])
def test_two_processes_leave_out_the_same_bags_and_tell_them_once(name, cohort, tmp_path):
    bags = with_broken_bags(name, cohort, tmp_path / "cohort")
    files = ("train", "multi_gpu_train")
    done = train(name, tmp_path, tmp_path / "cohort", epochs=1, files=files, skip_broken=True, run=run_together)
    assert failed(name, tmp_path) == [*bags["train"][:2], bags["val"][0]]
    assert done.stdout.count("left out: bag") == 3
    whole = len(bags["train"]) + len(bags["val"])
    assert done.stdout.count(f"{whole} bags: {whole - 3} taken, 3 left out") == 2, "at the beginning and at the end"
