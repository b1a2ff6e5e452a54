"""The engine, network, loss and metric together learn the benchmark of Ilse, Tomczak and Welling (ICML 2018)."""

from __future__ import annotations

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.transforms import Activationsd
from monai.utils import set_determinism

from monai_mil.datasets import make_mnist_bags
from monai_mil.losses import MILLoss
from monai_mil.metrics import AUROC, instance_auroc
from monai_mil.networks import ABMIL, InstanceEncoderMIL, instance_scores
from monai_mil.networks.instance_encoder import LeNetEncoder
from monai_mil.training import EpochSeeder, FullOutputInferer, prepare_bag_batch
from tests.conftest import shared

KEYS = ("image", "label")


def bags(split: str, count: int) -> list[dict]:
    return make_mnist_bags(shared("data/mnist/mnist.npz"), split=split, num_bags=count, mean_size=10, std_size=2)


def train(data: list[dict], epochs: int, seed: int) -> InstanceEncoderMIL:
    """One bag a step with the published network and optimiser."""
    set_determinism(seed)
    network = InstanceEncoderMIL(LeNetEncoder(), ABMIL(800, 2, hidden_dim=500, attention_dim=128))
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset([{key: bag[key] for key in KEYS} for bag in data]), shuffle=True),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=5e-4, betas=(0.9, 0.999), weight_decay=1e-4),
        loss_function=MILLoss(),
        inferer=FullOutputInferer(),
        prepare_batch=prepare_bag_batch,
        train_handlers=[EpochSeeder(seed)],
        decollate=False,
    ).run()
    set_determinism(None)
    return network


def evaluate(network: InstanceEncoderMIL, data: list[dict]) -> float:
    """AUROC of the bags, as a bundle measures it."""
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{key: bag[key] for key in KEYS} for bag in data])),
        network=network,
        prepare_batch=prepare_bag_batch,
        postprocessing=Activationsd("pred", softmax=True),
        key_val_metric={"auroc": AUROC()},
    )
    evaluator.run()
    return evaluator.state.metrics["auroc"]


def test_mnist_bags_are_learned_from_200_bags_and_attention_finds_the_nines() -> None:
    network = train(bags("train", 200), epochs=6, seed=0)
    test = bags("test", 300)
    assert evaluate(network, test) >= 0.95
    with torch.no_grad():
        attention = [instance_scores(network(bag["image"][None], return_dict=True))[0, 1].numpy() for bag in test]
    assert instance_auroc(attention, [bag["instance_labels"].numpy() for bag in test]) >= 0.95
