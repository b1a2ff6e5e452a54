"""A training step never waits for the device, but for one look at the bag at the door: no size depends on its numbers.

A fake tensor has no numbers: whoever asks for one fails. On a GPU CUDA itself tells of every wait.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from monai_mil.losses import BagCrossEntropy
from monai_mil.networks import INSIGHT
from monai_mil.training import Methods
from tests.bundles.common import BUNDLES
from tests.networks.test_contract import EVIDENCE, NETWORKS, bag, build

BASELINES = Methods(
    BUNDLES / "mil_baselines", "mil_baselines", {"in_channels": 8, "num_classes": 2, "multi_label": False}
)
MADE_OF_ANOTHER = {"abmil", "clam_mb", "dtfd_maxs", "max_pooling"}  # a variant of it stands among the methods too
ON_THE_HOST = {"patch_gcn"}  # it looks for neighbours in a tree
OF_METHODS = {type(BASELINES.choose(name).network()) for name in BASELINES}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def step_of_network(network_class: type[nn.Module]) -> Callable[[], None]:
    network, instance = build(network_class)
    image = bag(instance, 30)

    def step() -> None:
        output = network.train().describe(image, None)
        torch.stack([output[key].square().sum() for key in ("logits", *EVIDENCE) if key in output]).sum().backward()

    return step


def step_of_method(name: str) -> Callable[[], None]:
    method = BASELINES.choose(name)
    network, loss = method.network().train(), method.loss(BagCrossEntropy())
    image, label = torch.randn(1, 8, 30), torch.ones(1, dtype=torch.long)
    if "PositionsAsFeaturesd" in json.dumps(method.said.get("transforms", [])):
        image = torch.cat([image, torch.arange(60.0).reshape(1, 2, 30) % 6], dim=1)
    return lambda: loss(network.describe(image, None), label).backward()


STEPS: list[tuple[Callable[..., Callable[[], None]], object]] = [
    *((step_of_network, each) for each in NETWORKS if each not in {INSIGHT, *OF_METHODS}),
    *((step_of_method, name) for name in BASELINES if name not in MADE_OF_ANOTHER | ON_THE_HOST),
]
every_step = pytest.mark.parametrize(("make", "what"), STEPS, ids=lambda each: getattr(each, "__name__", str(each)))


@every_step
def test_a_step_asks_for_no_number_of_a_tensor(make: Callable[..., Callable[[], None]], what: object) -> None:
    with FakeTensorMode():
        make(what)()


def test_insight_waits_once_a_bag_for_its_only_look() -> None:
    with pytest.raises(DataDependentOutputException) as caught, FakeTensorMode():
        step_of_network(INSIGHT)()
    frames = [entry.name for entry in caught.traceback if "monai_mil" in str(entry.path)]
    assert frames[-1] == "_checked_answer"


@needs_gpu
@every_step
def test_a_step_does_not_wait_for_the_gpu(make: Callable[..., Callable[[], None]], what: object) -> None:
    with torch.device("cuda"):
        step = make(what)
        step()  # loads the kernels
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
