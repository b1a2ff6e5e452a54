"""An evaluation's handlers find the network's whole output in every case."""

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.transforms import Activationsd, Compose

from monai_mil.bags import collate_bags
from monai_mil.networks import ABMIL, MILNetwork
from monai_mil.training import FullOutputInferer, UnpackOutputd, prepare_bag_batch


def evaluate(network: MILNetwork, with_positions: bool) -> list[dict[str, object]]:
    """The items of one padded batch of 5 and 3 slices, as handlers see them."""
    items = [{"image": torch.randn(4, n), "label": 1, "scan_id": str(n)} for n in (5, 3)]
    if with_positions:
        for item in items:
            item["positions_mm"] = -700 + 2.5 * torch.arange(5.0)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=2, collate_fn=collate_bags),
        network=network,
        inferer=FullOutputInferer(),
        prepare_batch=prepare_bag_batch,
        postprocessing=Compose([UnpackOutputd("pred"), Activationsd("pred", sigmoid=True)]),
    )
    evaluator.run()
    return [{**given, **made} for given, made in zip(evaluator.state.batch, evaluator.state.output, strict=True)]


def test_the_whole_output_becomes_keys_of_the_case() -> None:
    network = ABMIL(4, 2, hidden_dim=8, attention_dim=4, heads=3).eval()
    for item, n in zip(evaluate(network, with_positions=False), (5, 3), strict=True):
        expected = network(item["image"][None, :, :n], return_dict=True)
        torch.testing.assert_close(item["pred"], expected["logits"][0].sigmoid().detach())
        torch.testing.assert_close(item["attention"][:, :n], expected["attention"][0].detach())
        torch.testing.assert_close(item["scores"][1, :n], expected["attention"][0].mean(0).detach())
        assert (item["attention"][:, n:] == 0).all()
        assert item["mask"].tolist() == [True] * n + [False] * (5 - n)
        assert "attention_center_mm" not in item


def test_the_centre_and_the_width_of_attention_are_in_mm() -> None:
    network = ABMIL(4, 1, hidden_dim=8, attention_dim=4, heads=3).eval()
    for item, n in zip(evaluate(network, with_positions=True), (5, 3), strict=True):
        attention = item["attention"][:, :n].double()
        positions = -700 + 2.5 * torch.arange(n, dtype=torch.float64)
        center = attention @ positions
        width = (attention * (positions - center[:, None]) ** 2).sum(1).sqrt()
        torch.testing.assert_close(item["attention_center_mm"].double(), center, rtol=0, atol=1e-3)
        torch.testing.assert_close(item["attention_width_mm"].double(), width, rtol=0, atol=1e-4)


class Plain(MILNetwork):
    """A network that cannot localise."""

    def describe(self, image: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
        return {"logits": image.mean(2)[:, :1]}


def test_a_network_that_cannot_localise_has_no_scores() -> None:
    item = evaluate(Plain(1), with_positions=True)[0]
    assert "scores" not in item
    assert "attention_center_mm" not in item


def test_the_item_given_is_left_as_it_is() -> None:
    item = {"pred": {"logits": torch.zeros(1)}}
    UnpackOutputd("pred")(item)
    assert item == {"pred": {"logits": torch.zeros(1)}}
    with pytest.raises(KeyError):
        UnpackOutputd("other")(item)


def test_a_network_that_answers_by_a_probability_is_taken_at_its_word() -> None:
    output = {"logits": torch.tensor([6.9]), "prob": torch.tensor([0.9995]), "heatmap": torch.rand(1, 3, 2, 2)}
    unpacked = UnpackOutputd("pred")({"pred": output})
    torch.testing.assert_close(unpacked["pred"], output["prob"])
    torch.testing.assert_close(unpacked["logits"], output["logits"])
    torch.testing.assert_close(unpacked["scores"], output["heatmap"].amax(dim=(2, 3)))
