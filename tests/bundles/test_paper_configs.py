"""The papers' own numbers: every bundle's paper.json is built at full width behind train.json and makes one step."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from monai_mil.scans import slice_preset
from monai_mil.synthetic import (
    ShiftedMean,
    make_bag_cohort,
    make_shifted_mean_cohort,
    make_token_scan_cohort,
    make_tree_cohort,
)
from tests.bundles.common import BUNDLES, NAMES, config


def tile_bags(folder: Path) -> None:
    make_bag_cohort(folder, num_bags=6, width=1024, bag_size=(3, 4), planted=0.5)


def small_tile_bags(folder: Path) -> None:
    make_bag_cohort(folder, num_bags=6, width=384, bag_size=(3, 4), planted=0.5)


def tile_tokens(folder: Path) -> None:
    make_bag_cohort(folder, num_bags=6, width=1024, bag_size=(2, 3), planted=0.5, grid=(14, 14))


def slice_tokens(folder: Path) -> None:
    make_token_scan_cohort(folder, scans=(2, 2, 2), slices=(2, 3), width=1024, grid=(37, 37))


def slice_bags(folder: Path) -> None:
    recipe = ShiftedMean(window=3, slices=(5, 8), width=768)
    make_shifted_mean_cohort(folder, recipe, scans=(2, 2, 2), seeds=(1, 2, 3))
    (folder / "bags" / "preset.json").write_text(json.dumps(slice_preset("chest_rsna").record()))


def trees(folder: Path) -> None:
    make_tree_cohort(folder, num_bags=6, width=1024, bag_size=(1, 1), planted=0.5)


@dataclass(frozen=True)
class Paper:
    """What a paper says, as far as it can be seen in the objects that its config makes.

    Attributes:
        cohort: writes a few bags as wide as the paper's.
        optimizer: its class and options.
        epochs, patience, batch, accumulation: of the training; no patience where every epoch is run.
        parameters: of the network, as counted in the released program (without what it does not use).
        bags: what synthetic bags do not say of themselves.
        predict: what inference.json must be told of it, as the docs say.
        step: what is left out to make one step affordable.
    """

    cohort: Any
    optimizer: type[torch.optim.Optimizer]
    options: dict[str, float]
    epochs: int
    parameters: int
    patience: int | None = None
    batch: int = 1
    accumulation: int = 1
    bags: dict[str, Any] = field(default_factory=dict)
    predict: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)


INSIGHT: dict[str, Any] = {
    "optimizer": torch.optim.AdamW,
    "options": {"lr": 1e-4, "weight_decay": 1e-4},
    "epochs": 50,
    "patience": 8,
}
PAPERS = {
    "ct_insight": Paper(
        slice_tokens,
        parameters=2_171_394,
        bags={"depth": "any", "lungs": "any"},
        predict={"in_channels": 1024, "network_def::norm": "layer"},
        **INSIGHT,
    ),
    "ct_normal_guidance": Paper(
        slice_bags,
        torch.optim.SGD,
        {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0},
        epochs=1000,
        batch=64,
        parameters=99_330,
        predict={"in_channels": 768},
    ),
    "mil_baselines": Paper(
        tile_bags,
        torch.optim.AdamW,
        {"lr": 2e-4, "weight_decay": 1e-5},
        epochs=30,
        patience=15,
        parameters=1024 * 512 + 512 + 2 * (512 * 256 + 256) + 256 + 1 + 2 * 512 + 2,
        predict={"in_channels": 1024, "widths": "published"},
    ),
    "pathology_asmil": Paper(
        small_tile_bags,
        torch.optim.Adam,
        {"lr": 1e-4, "weight_decay": 1e-5},
        epochs=50,
        parameters=649_618 - 2 * 128 - 8 * (128 * 2 + 2),
        predict={"in_channels": 384, "hidden_dim": 128},
    ),
    "pathology_hagmil": Paper(
        trees,
        torch.optim.Adam,
        {"lr": 1e-5, "weight_decay": 1e-5},
        epochs=200,
        patience=20,
        accumulation=4,
        parameters=3 * 30_201_903,
        predict={
            "in_channels": 1024,
            "hidden_dims": [1024, 1536, 512, 1024],
            "instance_channels": 512,
            "attention_dim": 256,
        },
        step={"levels": 1},
    ),
    "pathology_insight": Paper(tile_tokens, parameters=669_954, predict={"in_channels": 1024}, **INSIGHT),
}


def parsed(name: str, folder: Path, **options: Any) -> ConfigParser:
    """train.json and paper.json on the bags in ``folder``, a single one to learn from."""
    parser = ConfigParser()
    parser.read_config(config(name, "train", "paper"))
    parser.read_meta(config(name, "metadata"))
    run = {"dataset_dir": str(folder), "output_dir": str(folder), "ckpt_dir": str(folder), "encoder": "synthetic"}
    run |= {"class_names": ["negative", "positive"] if name.startswith("ct_") else ["normal", "tumor"]}
    run |= {"has_tensorboard": False, "val_interval": 2, **PAPERS[name].bags, **options}
    for key, value in run.items():
        parser[key] = value
    parser["train::dataset::data"] += "[:1]"
    return parser


def step(parser: ConfigParser) -> tuple[bool, float]:
    """Whether one step of the trainer changed the network, and its loss."""
    trainer = parser.get_parsed_content("train::trainer")
    network = trainer.network
    before = [parameter.detach().clone() for parameter in network.parameters()]
    trainer.state.max_epochs = 1
    trainer.run()
    moved = any(not torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))
    return moved, float(trainer.state.output[0]["loss"])


@pytest.fixture(scope="module")
def bags_of(tmp_path_factory):
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            PAPERS[name].cohort(made[name])
        return made[name]

    return folder


@pytest.mark.parametrize("name", NAMES)
def test_the_paper_speaks_of_keys_that_training_has(name):
    train, paper = (
        json.loads((BUNDLES / name / "configs" / f"{file}.json").read_text()) for file in ("train", "paper")
    )
    for key in paper:
        *parents, last = key.split("::")
        node = train
        for parent in parents:
            node = node[parent]
        assert last in node, key


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_the_paper_arrive(name, bags_of):
    paper, parser = PAPERS[name], parsed(name, bags_of(name))
    optimizer, trainer = (parser.get_parsed_content(key) for key in ("optimizer", "train::trainer"))
    assert type(optimizer) is paper.optimizer
    assert {key: optimizer.defaults[key] for key in paper.options} == paper.options
    assert trainer.state.max_epochs == paper.epochs
    assert trainer.accumulation_steps == paper.accumulation
    assert parser.get_parsed_content("train::dataloader").batch_size == paper.batch
    network = parser.get_parsed_content("network")
    assert sum(parameter.numel() for parameter in network.parameters()) == paper.parameters
    assert (
        sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"]) == paper.parameters
    )
    if paper.patience is not None:
        assert parser.get_parsed_content("early_stop").patience == paper.patience


@pytest.mark.parametrize("name", NAMES)
def test_the_network_of_the_paper_predicts_with_the_options_of_the_docs(name, bags_of):
    parser = ConfigParser()
    parser.read_config(config(name, "inference"))
    for key, value in PAPERS[name].predict.items():
        parser[key] = value
    shapes = (
        {key: value.shape for key, value in one.get_parsed_content("network_def").state_dict().items()}
        for one in (parser, parsed(name, bags_of(name)))
    )
    assert next(shapes) == next(shapes)


METHODS = {
    "mil_baselines": ("abmil", "clam_sb", "clam_mb", "dsmil", "transmil", "mean_pooling", "max_pooling"),
    "ct_normal_guidance": ("transmil", "smooth_abmil", "smooth_transmil"),
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(pytest.param(name, PAPERS[name].step, id=name) for name in NAMES),
        *(
            pytest.param(name, {"method": method}, id=f"{name}-{method}")
            for name, methods in METHODS.items()
            for method in methods
        ),
    ],
)
def test_a_network_of_the_paper_makes_a_step(name, options, bags_of):
    moved, loss = step(parsed(name, bags_of(name), **options))
    assert moved
    assert 0 < loss < 100
