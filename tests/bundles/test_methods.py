"""Every method of mil_baselines is one file: it builds, has a recipe of its own, and stands in the docs as it is."""

import json

import pytest
import torch

from monai_mil.training import Methods, read_method
from tests.bundles.common import BUNDLES, workflow

NAME = "mil_baselines"
ROOT = BUNDLES / NAME
FOLDER = ROOT / "configs" / "methods"
METHODS = sorted(path.stem for path in FOLDER.glob("*.json"))
README = (ROOT / "docs" / "README.md").read_text()


def method_row(name):
    """The method's line in the docs' table of methods."""
    said = read_method(FOLDER / f"{name}.json")
    weights = said.get("loss", {}).get("weights", {"bag": 1})
    loss = " + ".join(f"{weight:g} {term}" if len(weights) > 1 else term for term, weight in weights.items())
    default = " (default)" if name == "gated_abmil" else ""
    told = ", ".join(filter(None, (said["title"], said["paper"])))
    return f"| `{name}`{default} | {told} | {loss.replace('_', ' ')} | {said['attention']} |"


def recipe_row(name):
    """The method's line in the docs' table of recipes."""
    recipe = Methods(ROOT, NAME, {}).choose(name, recipe="own").recipe
    patience = f", {recipe.patience} without a better {recipe.select}" if recipe.patience < recipe.max_epochs else ""
    numbers = f"{recipe.optimizer} at {recipe.lr:g}, weight decay {recipe.weight_decay:g}, {recipe.schedule}"
    return f"| `{name}` | {numbers} | {recipe.max_epochs}{patience} | {recipe.source} |"


@pytest.mark.parametrize("method", METHODS)
def test_the_docs_say_of_a_method_what_its_file_says(method):
    assert method_row(method) in README.splitlines()
    assert recipe_row(method) in README.splitlines()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_s_file_has_its_keys_in_the_order_of_the_others(method):
    order = ["title", "paper", "attention", "network", "loss", "transforms", "handlers", "published", "survival", "own"]
    said = json.loads((FOLDER / f"{method}.json").read_text())
    assert list(said) == [key for key in order if key in said]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_built_at_its_published_widths_for_both_tasks(method):
    methods = Methods(ROOT, NAME, {"in_channels": 12, "num_classes": 3, "multi_label": False})
    for task in ("classes", "survival"):
        assert methods.choose(method, task, "published", "own").network().num_classes == 3


def test_one_key_chooses_a_method_s_own_recipe(cohort, tmp_path):
    options = {"dataset_dir": cohort, "ckpt_dir": tmp_path, "output_dir": tmp_path, "encoder": "synthetic"}
    run = workflow(NAME, ["train"], **options, method="clam_mb", recipe="own").parser.get_parsed_content
    optimizer, trainer, evaluator = (run(key) for key in ("optimizer", "train::trainer", "validate::evaluator"))
    assert type(optimizer).__name__ == "Adam"
    assert (trainer.state.max_epochs, run("early_stop").patience, run("best_model").mode) == (200, 20, "min")
    assert run("lr_scheduler").factor == 1
    assert run("network").gate_dropout == 0.25
    assert evaluator.state.key_metric_name == "val_loss"
    assert evaluator.metric_cmp_fn(1, 2)


def test_hdmil_s_second_stage_is_laid_over_its_trained_first(cohort, tmp_path):
    options = {"dataset_dir": cohort, "ckpt_dir": tmp_path, "output_dir": tmp_path, "encoder": "synthetic"}
    teacher = workflow(NAME, ["train"], **options, method="hdmil").parser.get_parsed_content("network")
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    run = workflow(NAME, ["train", "lipn"], **options, teacher=tmp_path / "teacher.pt").parser.get_parsed_content
    network, optimizer, trainer = (run(key) for key in ("network", "optimizer", "train::trainer"))
    for name, value in network.teacher.state_dict().items():
        torch.testing.assert_close(value, teacher.state_dict()[name], rtol=0, atol=0)
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(name.startswith(("screen.", "decide.")) for name in learning)
    assert (type(optimizer).__name__, optimizer.defaults["lr"], trainer.state.max_epochs) == ("Adam", 1e-4, 50)
    assert run("best_model").mode == "min"
