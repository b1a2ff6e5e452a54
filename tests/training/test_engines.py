"""Mixed precision on any device: the network runs in bfloat16, the loss in float32, and it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from monai_mil.losses import BagCrossEntropy, MILLoss
from monai_mil.networks import ABMIL, ACMIL
from monai_mil.training import BagEvaluator, BagTrainer, FullOutputInferer, prepare_bag_batch

WIDTH = 16


def bags() -> list[dict[str, Tensor]]:
    """Thirty bags, of which every second has three instances that stand out."""
    torch.manual_seed(0)
    items = []
    for index in range(30):
        image = torch.randn(1, WIDTH, 20)
        image[0, :4, :3] += 3.0 * (index % 2)
        items.append({"image": image, "label": torch.tensor([index % 2])})
    return items


class Watched(nn.Module):
    """A loss that remembers in which types it was asked, and whether under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = MILLoss({"bag": BagCrossEntropy()})
        self.seen: set[tuple[torch.dtype, bool]] = set()

    def forward(self, output: dict[str, Tensor], label: Tensor) -> Tensor:
        self.seen.add((output["logits"].dtype, torch.is_autocast_enabled("cpu")))
        return self.loss(output, label)


def types_of_products(network: nn.Module) -> set[torch.dtype]:
    """Filled with the type of what the network's hidden layer gives, as it runs."""
    seen: set[torch.dtype] = set()
    network.hidden.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    return seen


def train(network: nn.Module, loss: nn.Module, amp: bool, epochs: int) -> BagTrainer:
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    trainer = BagTrainer(
        "cpu", epochs, bags(), network, optimizer, loss, prepare_batch=prepare_bag_batch,
        inferer=FullOutputInferer(), amp=amp, decollate=False,
    )  # fmt: skip
    trainer.run()
    return trainer


def accuracy(network: nn.Module, amp: bool) -> float:
    right = []
    evaluator = BagEvaluator("cpu", bags(), network, prepare_batch=prepare_bag_batch, amp=amp, decollate=False)
    evaluator.add_event_handler(
        "ITERATION_COMPLETED",
        lambda engine: right.append(bool(engine.state.output["pred"].argmax() == engine.state.output["label"])),
    )
    evaluator.run()
    return sum(right) / len(right)


@pytest.mark.parametrize("amp", [False, True])
def test_the_network_alone_runs_in_bfloat16_on_a_cpu_and_learns(amp: bool) -> None:
    torch.manual_seed(0)
    network, loss = ACMIL(WIDTH, 2, hidden_dim=16, attention_dim=8, branches=2), Watched()
    seen = types_of_products(network)
    trainer = train(network, loss, amp, epochs=6)
    assert seen == {torch.bfloat16 if amp else torch.float32}
    assert loss.seen == {(torch.float32, False)}
    assert trainer.scaler is None
    assert {parameter.grad.dtype for parameter in network.parameters() if parameter.grad is not None} == {torch.float32}
    seen.clear()
    assert accuracy(network, amp) >= 0.95
    assert seen == {torch.bfloat16 if amp else torch.float32}


def test_the_steps_that_work_in_chunks_run_in_bfloat16_too(monkeypatch: pytest.MonkeyPatch) -> None:
    network, seen = ABMIL(WIDTH, 2, 16, 8), set()
    product = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *args, **kwargs: (seen.add(args[1].dtype), product(*args, **kwargs))[1])
    train(network, Watched(), amp=True, epochs=1)
    assert torch.bfloat16 in seen
