"""Class weights, balanced draws, fine-tuning and freezing, and weights that do not fit: keys of every bundle."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow

from monai_mil.errors import MonaiMILError
from monai_mil.model_card import weights_digest
from monai_mil.synthetic import make_survival_cohort
from monai_mil.training import users_error
from tests.bundles.common import BUNDLES, EXAMPLES, NAMES, checkpoint, config, train, weights
from tests.processes import run_together

FIRST = {
    "ct_insight": "tiles.projection",
    "ct_normal_guidance": "hidden",
    "mil_baselines": "hidden",
    "pathology_asmil": "hidden",
    "pathology_hagmil": "levels.0.blocks",
    "pathology_insight": "tiles.projection",
}
HEAD = {"mil_baselines": "classifier", "pathology_asmil": "classifier", "pathology_hagmil": "levels.2.classifier"}
RECIPE = {"class_weights": [1, 3], "sampler": "balanced"}
LOADER = "train::dataloader"


def workflow(name, cohort, folder, files=("train",), epochs=1, **options):
    given = {**EXAMPLES[name].options(cohort, folder), "class_names": list(EXAMPLES[name].classes)} | options
    given |= {"bundle_root": BUNDLES / name, "train::trainer::max_epochs": epochs}
    if files == ("inference",):
        given = {key: value for key, value in given.items() if not key.startswith(("train", "optimizer", "batch"))}
    words = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    meta = str(BUNDLES / name / "configs" / "metadata.json")
    return ConfigWorkflow(config(name, *files), meta, logging_file=False, workflow_type="train", **words)


def trained_with(name, cohort, folder, **options):
    """What a training is made of, when it has run."""
    run = workflow(name, cohort, folder, **options)
    run.initialize()
    run.run()
    return {
        key: run.parser.get_parsed_content(key) for key in ("class_balance", "network", "optimizer", "loss", LOADER)
    }


def begin(run):
    run.initialize()
    run.run()


def refusal(name, cohort, folder, **options):
    with pytest.raises((RuntimeError, MonaiMILError)) as raised:
        begin(workflow(name, cohort, folder, **options))
    assert not (folder / "models" / "checkpoints").exists()
    return str(users_error(raised.value))


@pytest.mark.parametrize("name", NAMES)
def test_every_bundle_fine_tunes_balances_and_freezes(name, trained_of, cohort_of, tmp_path):
    pretrained, frozen = trained_of(name)[0] / "models" / "model.pt", FIRST[name]
    if name in HEAD:
        run = workflow(name, cohort_of(name), tmp_path, class_names=[*EXAMPLES[name].classes, "other"])
        run.initialize()
        pretrained = tmp_path / "pretrained.pt"
        torch.save(run.parser.get_parsed_content("network").state_dict(), pretrained)
    options = {**RECIPE, "pretrained": pretrained, "freeze": [frozen]}
    short = {"train::trainer::epoch_length": 4, "validate::evaluator::epoch_length": 4}
    made = trained_with(name, cohort_of(name), tmp_path, **options, **short)
    old, new = torch.load(pretrained, weights_only=True), weights(tmp_path)
    assert {key for key in old if torch.equal(old[key], new[key])} >= {key for key in old if key.startswith(frozen)}
    assert any(not torch.equal(old[key], new[key]) for key in old if not key.startswith(frozen))
    if name in HEAD:
        head = f"{HEAD[name]}.weight"
        assert (old[head].shape[0], new[head].shape[0]) == (3, 2)
    card = json.loads((tmp_path / "models" / "model.json").read_text())
    assert card["fine_tuned_from"] == weights_digest(old)
    held = {id(parameter) for group in made["optimizer"].param_groups for parameter in group["params"]}
    assert held == {id(each) for key, each in made["network"].named_parameters() if not key.startswith(frozen)}
    balance, loader = made["class_balance"], made[LOADER]
    low, high = balance.negative_weights or balance.positive_weights[:1], balance.positive_weights[-1:]
    assert high[0] / low[0] == pytest.approx(3)
    weighted = {
        key.rsplit(".", 1)[1]: value.tolist() for key, value in made["loss"].named_buffers() if "weights" in key
    }
    assert pytest.approx(balance.positive_weights) in weighted.values()
    labels = [loader.dataset.data[place]["label"] for place in loader.sampler]
    assert len(labels) == len(loader.dataset)
    assert abs(labels.count(0) - labels.count(1)) <= 1


def test_a_run_with_all_of_it_resumes_bit_identically(trained_of, cohort_of, tmp_path):
    name, options = "pathology_asmil", {**RECIPE, "freeze": ["hidden"]}
    options["pretrained"] = trained_of(name)[0] / "models" / "model.pt"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trained_with(name, cohort_of(name), whole, epochs=2, **options, **{"lr_scheduler::T_max": 9})
    trained_with(name, cohort_of(name), parts, epochs=1, **options, **{"lr_scheduler::T_max": 9})
    assert checkpoint(parts, 1)["best_model"]["fine_tuned_from"]
    trained_with(name, cohort_of(name), parts, epochs=2, resume=True, **options, **{"lr_scheduler::T_max": 9})
    for kind in ("network", "anchor"):
        one, other = (checkpoint(folder, 2)[kind] for folder in (whole, parts))
        one, other = (state.get("network", state) for state in (one, other))
        assert all(torch.equal(one[key], other[key]) for key in one)
    card = json.loads((parts / "models" / "model.json").read_text())
    assert card["fine_tuned_from"] == weights_digest(torch.load(options["pretrained"], weights_only=True))
    other = workflow(name, cohort_of(name), parts, epochs=3, resume=True, **options | {"freeze": []})
    other.initialize()
    with pytest.raises(RuntimeError) as raised:
        other.run()
    said = str(users_error(raised.value))
    assert "froze 1 parameters (hidden), this one freezes nothing; resume with the --freeze" in said


def test_two_processes_freeze_balance_and_fine_tune_as_one(trained_of, cohort_of, tmp_path):
    name = "mil_baselines"
    pretrained = trained_of(name)[0] / "models" / "model.pt"
    options = {**RECIPE, "pretrained": pretrained, "freeze": "hidden"}
    done = train(
        name, tmp_path, cohort_of(name), epochs=1, files=("train", "multi_gpu_train"), run=run_together, **options
    )
    old, new = torch.load(pretrained, weights_only=True), weights(tmp_path)
    assert {key for key in old if torch.equal(old[key], new[key])} == {"hidden.weight", "hidden.bias"}
    assert done.stdout.count(" stay as they are, ") == done.stdout.count("fine-tuning: ") == 1


@pytest.mark.parametrize(
    ("name", "overlay"),
    [("mil_baselines", "survival"), ("pathology_asmil", "survival"), ("ct_normal_guidance", "slice_supervised")],
)
@pytest.mark.parametrize("key", ["class_weights", "sampler"])
def test_what_has_no_classes_is_not_balanced(name, overlay, key, cohort_of, tmp_path):
    survival = overlay == "survival"
    cohort = (
        make_survival_cohort(tmp_path, num_bags=12, width=4, bag_size=(2, 4)).parent if survival else cohort_of(name)
    )
    options = {"time_edges": [0, 1, 2]} if survival else {}
    said = refusal(name, cohort, tmp_path, files=("train", overlay), **{key: "balanced"}, **options)
    assert said.startswith(f"{key} balanced: what this training learns is no class of a bag")


USES = [
    (name, use)
    for name in NAMES
    for use in ("inference", "evaluate", "calibrate", "resume")
    if use == "resume" or (BUNDLES / name / "configs" / f"{use}.json").exists()
]


@pytest.mark.parametrize(("name", "use"), USES)
def test_weights_without_a_card_that_do_not_fit_say_what_would(name, use, cohort_of, tmp_path):
    folder = tmp_path / "models"
    shutil.copytree(BUNDLES / name / "models", folder)
    own = json.loads((folder / "model.json").read_text())["settings"]
    (folder / "model.json").unlink()
    files = {"inference": ("inference",), "resume": ("train",)}.get(use, ("train", use))
    options = {"in_channels": own["in_channels"] + 2} | ({"resume": True} if use == "resume" else {})
    options |= {"ckpt_path": folder / "model.pt"} if use == "inference" else {}
    said = refusal(name, cohort_of(name), tmp_path, files=files, **options)
    assert said.startswith(f"weights '{folder / 'model.pt'}' do not fit the configured ")
    assert f"; they would with --in_channels {own['in_channels']} (" in said
