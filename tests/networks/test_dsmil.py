"""DSMIL: the reference's numbers, its critical instances, chunks read twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from monai_mil.losses import BagBCE, MaxInstance, MILLoss
from monai_mil.networks import DSMIL
from monai_mil.networks.blocks.attention_pool import CHUNK_ROWS
from monai_mil.networks.dsmil import REFERENCE_NAMES
from tests.conftest import shared

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture
def golden() -> dict[str, Tensor]:
    with np.load(shared("golden/dsmil.npz")) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def weights_of(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("weight."): value for name, value in golden.items() if name.startswith("weight.")}


def test_the_reference_s_answers_and_gradients_are_reproduced(golden: dict[str, Tensor]) -> None:
    network = DSMIL.from_reference(weights_of(golden))
    output = network(golden["input"].float().T[None], return_dict=True)
    torch.testing.assert_close(output["logits"], golden["out.bag_logits"], **CLOSE)
    torch.testing.assert_close(output["instance_logits"][0].T, golden["out.instance_logits"], **CLOSE)
    torch.testing.assert_close(output["attention"][0].T, golden["out.attention_NC"], **CLOSE)
    torch.testing.assert_close(output["bag"], golden["out.bag"].flatten(1), **CLOSE)
    loss = MILLoss({"bag": BagBCE(), "instance": MaxInstance(BagBCE())}, {"bag": 0.5, "instance": 0.5})
    total = loss(output, golden["label"])
    torch.testing.assert_close(total, golden["loss.total"], **CLOSE)
    total.backward()
    parameters = dict(network.named_parameters())
    assert len(parameters) == sum(name.startswith("grad.") for name in golden)
    for theirs, ours in REFERENCE_NAMES.items():
        for kind in ("weight", "bias"):
            expected = golden[f"grad.{theirs}{kind}"]
            torch.testing.assert_close(
                parameters[ours + kind].grad, expected.reshape_as(parameters[ours + kind]), **CLOSE
            )


def test_another_method_s_checkpoint_is_refused(golden: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="not this network's state dict"):
        DSMIL.from_reference({"fc.weight": torch.zeros(2, 2)})
    state = weights_of(golden) | {"b_classifier.v.1.weight": torch.zeros(40, 40)}
    with pytest.raises(ValueError, match=r"b_classifier\.v\.1\.weight"):
        DSMIL.from_reference(state)


@pytest.mark.parametrize("training", [True, False], ids=["whole", "chunks"])
def test_the_critical_instance_is_the_real_one_with_most_evidence(training: bool) -> None:
    network = DSMIL(6, 3)
    image, mask = torch.randn(2, 6, 20), torch.ones(2, 20, dtype=torch.bool)
    mask[0, 3:9] = False
    image[0, :, 3:9] = 50 * network.instances.weight.detach()[0][:, None]
    with torch.set_grad_enabled(training):
        output = network(image, mask, return_dict=True)
    evidence = network.instances(image.mT).mT.masked_fill(~mask[:, None], -torch.inf)
    assert output["critical"].tolist() == evidence.argmax(dim=2).tolist()
    torch.testing.assert_close(output["instance_logits"], evidence)


def test_a_copy_answers_for_the_original_s_critical_instances() -> None:
    network, other = DSMIL(6, 2), DSMIL(6, 2)
    image = torch.randn(1, 6, 30)
    output = network(image, return_dict=True)
    torch.testing.assert_close(
        network.attention_scores(image, None, output), output["attention_logits"], rtol=0, atol=0
    )
    other.query1, other.query2 = network.query1, network.query2
    scores = other.attention_scores(image, None, output)
    torch.testing.assert_close(scores, output["attention_logits"])


def test_chunks_and_the_whole_bag_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK_ROWS, "cpu", 7)
    network = DSMIL(6, 3).eval()
    image = torch.randn(2, 6, 40)
    mask = torch.rand(2, 40) < 0.7
    whole = network(image, mask, return_dict=True)
    with torch.no_grad():
        chunked = network(image, mask, return_dict=True)
    for key, value in whole.items():
        torch.testing.assert_close(chunked[key], value, rtol=1e-5, atol=1e-6)


def test_a_bag_from_elsewhere_is_read_twice_and_a_generator_refused() -> None:
    network = DSMIL(6, 3).eval()
    rows = torch.randn(5000, 6).half()
    chunks = [chunk.numpy() for chunk in rows.split(777)]
    output = network.pool_chunks(chunks)
    whole = network(rows.T[None], return_dict=True)
    assert output.keys() == whole.keys()
    for key, value in output.items():
        torch.testing.assert_close(value, whole[key], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="not a generator"):
        network.pool_chunks(chunk for chunk in chunks)
    with pytest.raises(ValueError, match="without instances"):
        network.pool_chunks([])
    with pytest.raises(ValueError, match="not finite"):
        network.pool_chunks([torch.zeros(3, 6), torch.full((3, 6), torch.nan)])


def test_training_keeps_the_queries_and_no_copy_of_the_bag() -> None:
    saved: dict[int, int] = {}
    network = DSMIL(64, 2, query_dim=16)

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(torch.randn(1, 4000, 64).mT)
    assert sum(size for size in saved.values() if size >= 4000 * 8 * 4) == 4 * 4000 * (64 + 16 + 16)
