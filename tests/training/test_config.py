"""The training objects from a bundle's JSON, as a config writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.bundle import ConfigParser

CONFIG = {
    "device": "cpu",
    "bags": "$[{'image': torch.randn(4, 6), 'label': i % 2} for i in range(8)]",
    "network_def": {"_target_": "monai_mil.networks.ABMIL", "in_channels": 4, "num_classes": 2},
    "network": "$@network_def.to(@device)",
    "loss": {
        "_target_": "monai_mil.losses.MILLoss",
        "terms": {"bag": {"_target_": "monai_mil.losses.BagCrossEntropy", "label_smoothing": 0.1}},
        "weights": {"bag": 1.0},
    },
    "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.001},
    "prepare_batch": {"_target_": "monai_mil.training.prepare_bag_batch", "_mode_": "callable"},
    "best_model": {"_target_": "monai_mil.training.BestModel", "network": "@network_def", "path": "@path"},
    "early_stop": {"_target_": "monai_mil.training.EarlyStop", "patience": 50},
    "checkpointer": {
        "_target_": "monai_mil.training.Checkpointer",
        "folder": "@folder",
        "objects": {
            "network": "@network",
            "optimizer": "@optimizer",
            "best_model": "@best_model",
            "early_stop": "@early_stop",
        },
        "resume": True,
    },
    "dataloader": {"_target_": "monai.data.DataLoader", "dataset": "@bags", "batch_size": 4},
    "train": {
        "inferer": {"_target_": "monai_mil.training.FullOutputInferer"},
        "handlers": [
            {"_target_": "monai_mil.training.EpochSeeder", "seed": 0},
            {"_target_": "monai.handlers.ValidationHandler", "interval": 1, "validator": "@evaluator"},
        ],
    },
    "evaluator": {
        "_target_": "monai.engines.SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "prepare_batch": "@prepare_batch",
        "postprocessing": {"_target_": "monai.transforms.Activationsd", "keys": "pred", "softmax": True},
        "key_val_metric": {"val_auroc": {"_target_": "monai_mil.metrics.AUROC"}},
    },
    "trainer": {
        "_target_": "monai.engines.SupervisedTrainer",
        "device": "@device",
        "max_epochs": 2,
        "train_data_loader": "@dataloader",
        "network": "@network",
        "optimizer": "@optimizer",
        "loss_function": "@loss",
        "inferer": "@train#inferer",
        "prepare_batch": "@prepare_batch",
        "train_handlers": "@train#handlers",
        "decollate": False,
    },
    "initialize": [
        "$@best_model.attach(@evaluator)",
        "$@early_stop.attach(@evaluator, @trainer)",
        "$@checkpointer.attach(@trainer)",
    ],
    "finalize": ["$monai_mil.training.finish_distributed()"],
}


def parser(folder: Path) -> ConfigParser:
    imports = {"imports": ["$import torch", "$import monai_mil"]}
    paths = {"folder": str(folder), "path": str(folder / "models" / "model.pt")}
    return ConfigParser(imports | paths | CONFIG)


def test_a_config_trains_validates_saves_and_resumes(tmp_path: Path) -> None:
    first = parser(tmp_path)
    first.get_parsed_content("initialize")
    first.get_parsed_content("trainer").run()
    assert (tmp_path / "checkpoint_epoch=2.pt").exists()
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert state.keys() == first.get_parsed_content("network_def").state_dict().keys()

    second = parser(tmp_path)
    second["trainer::max_epochs"] = 3
    second.get_parsed_content("initialize")
    second.get_parsed_content("trainer").run()
    assert second.get_parsed_content("trainer").state.iteration == 6
    assert (tmp_path / "checkpoint_epoch=3.pt").exists()
    assert set(second.get_parsed_content("loss").last) == {"bag"}
    second.get_parsed_content("finalize")
