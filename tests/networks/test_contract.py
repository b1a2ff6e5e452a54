"""What architecture.md promises of every network; each class that monai_mil.networks exports enters by itself.

A network whose constructor does not take ``(in_channels, num_classes)`` or whose bags are spatial says so in a class
attribute ``contract_example``: a function that returns a small network and the shape ``[d, ...]`` of one instance.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import monai_mil.networks
from monai_mil.networks import (
    HAGMIL,
    InstanceEncoderMIL,
    MILNetwork,
    VolumeClassifier,
    camil,
    contract,
    instance_scores,
    patch_gcn,
    r2t,
    wikg,
)
from monai_mil.networks.blocks import AttentionNetwork, attention_network, iat_block, neighbours, nystrom
from monai_mil.networks.blocks.attention_pool import CHUNK_ROWS
from monai_mil.networks.contract import ChunkedNetwork
from monai_mil.networks.feature_pooling import FeaturePooling

CHANNELS, CLASSES = 12, 3
EXPORTED = [getattr(monai_mil.networks, name) for name in monai_mil.networks.__all__]
NETWORKS = [
    item for item in EXPORTED if inspect.isclass(item) and issubclass(item, nn.Module) and item is not MILNetwork
]
KEYS = {
    "logits": "bc",
    "attention": "bhn",
    "attention_logits": "bhn",
    "attention_share": "bhn",
    "bag": "bd",
    "branch_logits": "btc",
    "token_logits": "btc",
    "instance_logits": "bcn",
    "top_instance_logits": "bck",
    "bottom_instance_logits": "bck",
    "level_logits": "blc",
    "level_top_instance_logits": "blck",
    "level_bottom_instance_logits": "blck",
    "critical": "bc",
    "heatmap": "bcnyx",
    "detection_logits": "bcnyx",
    "threshold": "bc",
    "instance_scores": "bcn",
    "screen_logits": "bcn",
    "prob": "bc",
    "mask": "bn",
    "token_mask": "bnyx",
}

ORDERED = {
    *("CAMIL", "DTFDMIL", "HAGMIL", "IAT", "R2T", "TransMIL"),
    *("SmoothABMIL", "SmoothTransformer1D", "TransMIL1D", "VolumeClassifier"),
}
"""Networks for which the order of the instances matters, as their docstrings say."""

SMALL_STEPS = [
    (camil, "STEP_TILES", 5),
    (camil, "ASKING_TILES", 13),
    (neighbours, "_PART", 4),
    (patch_gcn, "SQUARE", 3),
    (r2t, "HELD_SCORES", 0),
    (r2t, "SCORES_AT_ONCE", 64),
    (wikg, "HEADS_AT_ONCE", 7),
]
"""What networks do at once of a long bag, so little that a short one takes many steps."""

EVIDENCE = ("instance_logits", "top_instance_logits", "bottom_instance_logits", "branch_logits", "screen_logits")


def bag(instance: tuple[int, ...], n: int, batch: int = 1) -> Tensor:
    """Features ``[b, d, n, ...]``."""
    return torch.randn(batch, instance[0], n, *instance[1:])


def build(network_class: type[nn.Module]) -> tuple[nn.Module, tuple[int, ...]]:
    """A small network and the shape ``[d, ...]`` of an instance."""
    torch.manual_seed(0)
    if hasattr(network_class, "contract_example"):
        network, instance = network_class.contract_example()
    else:
        network, instance = network_class(CHANNELS, CLASSES), (CHANNELS,)
    return network.eval(), instance


def gives_attention(network_class: type[nn.Module]) -> bool:
    network, instance = build(network_class)
    return "attention" in network(bag(instance, 2), return_dict=True)


@pytest.fixture(params=NETWORKS, ids=lambda network: network.__name__)
def example(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    return build(request.param)


@pytest.fixture
def network(example: tuple[nn.Module, tuple[int, ...]]) -> nn.Module:
    return example[0]


@pytest.fixture
def compact(network: nn.Module) -> nn.Module:
    """The network that goes twice, not six or ten times, through a loop: compilers take their time by the node."""
    for part in network.modules():
        for count in ("iterations", "steps"):
            if hasattr(part, count):
                setattr(part, count, 2)
    return network


_SCRIPTED: dict[type[nn.Module], torch.jit.ScriptModule] = {}


@pytest.fixture
def scripted(compact: nn.Module) -> torch.jit.ScriptModule:
    """The same scripted, saved and loaded again, once for all tests."""
    if type(compact) not in _SCRIPTED:
        stored = io.BytesIO()
        torch.jit.save(torch.jit.script(compact), stored)
        stored.seek(0)
        _SCRIPTED[type(compact)] = torch.jit.load(stored)
    return _SCRIPTED[type(compact)]


@pytest.fixture
def instance(example: tuple[nn.Module, tuple[int, ...]]) -> tuple[int, ...]:
    return example[1]


def objective(network: nn.Module, image: Tensor) -> Tensor:
    """A loss of the answer and of the evidence of instances and branches, which some networks teach on its own."""
    output = network(image, return_dict=True)
    evidence = [output[key] for key in ("logits", *EVIDENCE) if key in output]
    return torch.stack([part[part.isfinite()].square().sum() for part in evidence]).sum()


def padded(image: Tensor, real: int) -> tuple[Tensor, Tensor]:
    """The bag with random padding behind its ``real`` instances, and the mask."""
    mask = torch.zeros(len(image), image.shape[2], dtype=torch.bool)
    mask[:, :real] = True
    return image, mask


def test_networks_are_found() -> None:
    assert {"ABMIL", "MeanPooling", "MaxPooling"} <= {network.__name__ for network in NETWORKS}


@pytest.mark.parametrize("n", [1, 2, 7])
def test_logits_are_one_tensor_for_any_bag_size(network: nn.Module, instance: tuple[int, ...], n: int) -> None:
    logits = network(bag(instance, n, batch=2))
    assert type(logits) is Tensor
    assert logits.shape == (2, network.num_classes)
    assert torch.isfinite(logits).all()


def test_bags_of_one_and_of_thousands_are_answered_and_taught(network: nn.Module, instance: tuple[int, ...]) -> None:
    with torch.no_grad():
        assert torch.isfinite(network(bag(instance, 5000))).all()
    for n in (1, 5000 if len(instance) == 1 else 50):
        image = bag(instance, n).requires_grad_()
        objective(network.train(), image).backward()
        gradients = [image.grad, *(parameter.grad for parameter in network.parameters())]
        assert all(torch.isfinite(gradient).all() for gradient in gradients if gradient is not None)


def test_the_order_of_the_instances_matters_where_the_method_says_so(
    network: nn.Module, instance: tuple[int, ...]
) -> None:
    image, order = bag(instance, 40), torch.randperm(40)
    output, turned = network(image, return_dict=True), network(image[:, :, order], return_dict=True)
    if type(network).__name__ in ORDERED:
        assert "order" in type(network).__doc__
        assert not torch.allclose(turned["logits"], output["logits"], rtol=0, atol=1e-4)
        return
    torch.testing.assert_close(turned["logits"], output["logits"], rtol=0, atol=2e-6)
    torch.testing.assert_close(instance_scores(turned), instance_scores(output)[:, :, order], rtol=0, atol=2e-6)


def test_the_output_holds_documented_keys_and_shapes_only(network: nn.Module, instance: tuple[int, ...]) -> None:
    output = network(*padded(bag(instance, 5, batch=2), 4), return_dict=True)
    sizes = {"b": 2, "c": network.num_classes, "n": 5}
    assert "logits" in output
    for key, value in output.items():
        assert value.shape[0] == 2, f"{key} is not batch-first and cannot be decollated"
        if key in KEYS:
            assert value.dim() == len(KEYS[key])
            expected = [sizes.get(axis, size) for axis, size in zip(KEYS[key], value.shape, strict=True)]
            assert list(value.shape) == expected, key


def test_the_dict_and_the_tensor_agree(network: nn.Module, instance: tuple[int, ...]) -> None:
    image = bag(instance, 6)
    torch.testing.assert_close(network(image), network(image, return_dict=True)["logits"], rtol=0, atol=0)


def test_padding_never_changes_a_result(network: nn.Module, instance: tuple[int, ...]) -> None:
    image, mask = padded(bag(instance, 9, batch=2), 6)
    alone = network(image[:, :, :6], return_dict=True)
    for filler in (0.0, 1e4, float("nan")):
        image = image.clone()
        image[:, :, 6:] = filler
        output = network(image, mask, return_dict=True)
        torch.testing.assert_close(output["logits"], alone["logits"], rtol=0, atol=1e-6)
        scores = instance_scores(output)[:, :, :6]
        torch.testing.assert_close(scores, instance_scores(alone), rtol=0, atol=1e-6)


def test_bags_of_a_batch_do_not_influence_each_other(network: nn.Module, instance: tuple[int, ...]) -> None:
    image = bag(instance, 5, batch=3)
    apart = torch.cat([network(one) for one in image.split(1)])
    torch.testing.assert_close(network(image), apart, rtol=0, atol=1e-6)


@pytest.mark.parametrize("network_class", [each for each in NETWORKS if gives_attention(each)])
def test_attention_is_a_distribution_over_real_instances(network_class: type[nn.Module]) -> None:
    network, instance = build(network_class)
    attention = network(*padded(bag(instance, 8, batch=2), 5), return_dict=True)["attention"]
    assert (attention >= 0).all()
    assert (attention[:, :, 5:] == 0).all()
    torch.testing.assert_close(attention.sum(2), torch.ones(attention.shape[:2]))


def test_instance_scores_cover_every_class_and_instance(network: nn.Module, instance: tuple[int, ...]) -> None:
    output = network(bag(instance, 7, batch=2), return_dict=True)
    scores = instance_scores(output)
    assert scores.shape == (2, network.num_classes, 7)
    assert torch.isfinite(scores).all()


def test_an_empty_bag_is_refused(network: nn.Module, instance: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="without instances"):
        network(bag(instance, 0))
    with pytest.raises(ValueError, match="without instances"):
        network(*padded(bag(instance, 3), 0))


def test_what_has_not_the_shape_of_a_bag_is_refused(network: nn.Module, instance: tuple[int, ...]) -> None:
    for shape in ((instance[0], 4), (1, instance[0], 4, 1)):
        with pytest.raises(ValueError, match=r"a bag must be \[b, d, n\] or \[b, d, n, h, w\], got \[") as caught:
            network(torch.zeros(shape))
        assert str(caught.value).endswith(str(list(shape)))


@pytest.mark.parametrize("base", [lambda: ChunkedNetwork(1), lambda: FeaturePooling(2, 1)])
def test_a_network_that_lacks_its_own_part_says_so_at_once(base: Callable[[], ChunkedNetwork]) -> None:
    with pytest.raises(NotImplementedError):
        base()(torch.zeros(1, 2, 3))
    with pytest.raises(NotImplementedError):
        base().pool_chunks([torch.zeros(3, 2)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_finite_are_refused(network: nn.Module, instance: tuple[int, ...], value: float) -> None:
    image = bag(instance, 6, batch=2)
    image[1, 0, 4] = value
    with pytest.raises(ValueError, match=r"bag 1 .* not finite, first in instance 4"):
        network(image)


def test_huge_but_finite_features_are_not_refused(network: nn.Module, instance: tuple[int, ...]) -> None:
    image = torch.full_like(bag(instance, 40), 3e37)
    assert torch.isinf(image.sum())
    network(image)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 5), (1, 4, 1)])
def test_a_mask_that_does_not_fit_is_refused(
    network: nn.Module, instance: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="the mask must be bool"):
        network(bag(instance, 4), torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match="bool"):
        network(bag(instance, 4), torch.ones(1, 4))


def test_a_transposed_view_gives_the_same_result(network: nn.Module, instance: tuple[int, ...]) -> None:
    image = bag(instance, 30)
    view = image.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(network(view), network(image), rtol=0, atol=1e-6)


def test_a_half_precision_bag_is_looked_at_once_though_its_sum_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.full((1, 3, 40_000), 3.0, dtype=torch.float16)
    assert not image.sum().isfinite()
    for value in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(ValueError, match="first in instance 7"):
            contract.check_bag(image.index_fill(2, torch.tensor([7]), value), None)
    monkeypatch.setattr(contract, "_zero_padding", None)
    assert contract.check_bag(image, None) is image


def test_half_precision_features_are_widened(
    compact: nn.Module, scripted: torch.jit.ScriptModule, instance: tuple[int, ...]
) -> None:
    image = bag(instance, 30).half()
    expected = compact(image.float())
    forms = (
        compact,
        scripted,
        torch.jit.trace(compact, (image,)),
        torch.compile(compact, backend="eager"),
    )
    for form in forms:
        torch.testing.assert_close(form(image), expected, rtol=0, atol=1e-6)


def test_gradients_reach_every_parameter_and_the_input(network: nn.Module, instance: tuple[int, ...]) -> None:
    image = bag(instance, 6, batch=2).requires_grad_()
    objective(network.train(), image).backward()
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()
    without = [name for name, each in network.named_parameters() if each.requires_grad and each.grad is None]
    assert not without, "DDP would wait for these"


def test_autocast_keeps_the_answer_and_attention_in_float32(network: nn.Module, instance: tuple[int, ...]) -> None:
    image = bag(instance, 20)
    exact = network(image, return_dict=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(image, return_dict=True)
    torch.testing.assert_close(output["logits"], exact["logits"], rtol=0.05, atol=0.05)
    for key in ("attention", "attention_logits", "attention_share", "heatmap", "bag"):
        if key in output:
            assert output[key].dtype == torch.float32


def test_a_network_of_bfloat16_trains_and_answers_in_float32(network: nn.Module, instance: tuple[int, ...]) -> None:
    image = bag(instance, 20)
    exact = network(image)
    network.bfloat16()
    if isinstance(network, InstanceEncoderMIL | VolumeClassifier):  # torch's own layers read their pixels
        with pytest.raises(RuntimeError, match="should be the same"):
            network(image)
        return
    with torch.no_grad():
        torch.testing.assert_close(network(image), exact, rtol=0.1, atol=0.1)
    objective(network.train(), image).backward()
    for parameter in network.parameters():
        if parameter.requires_grad:  # a frozen teacher's do not
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.bfloat16


def test_it_scripts_with_the_same_result_and_errors(
    compact: nn.Module, scripted: torch.jit.ScriptModule, instance: tuple[int, ...]
) -> None:
    for n in (1, 7, 1000):
        image = bag(instance, n)
        torch.testing.assert_close(scripted(image), compact(image), rtol=0, atol=1e-5)
    image, mask = padded(bag(instance, 9, batch=2), 6)
    torch.testing.assert_close(scripted(image, mask), compact(image, mask), rtol=0, atol=1e-5)
    with pytest.raises(torch.jit.Error, match="without instances"):
        scripted(bag(instance, 0))


def test_a_trace_of_one_bag_size_works_for_others(compact: nn.Module, instance: tuple[int, ...]) -> None:
    traced = torch.jit.trace(compact, (bag(instance, 40),))
    for n in (1, 7, 1000):
        image = bag(instance, n)
        torch.testing.assert_close(traced(image), compact(image), rtol=0, atol=1e-5)


def test_onnx_takes_any_bag_size(compact: nn.Module, instance: tuple[int, ...], tmp_path) -> None:
    path = tmp_path / "network.onnx"
    torch.onnx.export(
        compact,
        (bag(instance, 40),),
        str(path),
        input_names=["image"],
        output_names=["pred"],
        dynamic_axes={"image": {0: "b", 2: "n"}},
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(path)
    for n in (1, 7, 1000):
        image = bag(instance, n)
        (pred,) = session.run(None, {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(pred), compact(image), rtol=0, atol=1e-5)


def test_torch_export_takes_any_bag_size(compact: nn.Module, instance: tuple[int, ...]) -> None:
    size = torch.export.Dim("n", min=2, max=100_000)
    program = torch.export.export(compact, (bag(instance, 40),), dynamic_shapes=({2: size},)).module()
    image = bag(instance, 321)
    torch.testing.assert_close(program(image), compact(image), rtol=0, atol=1e-5)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> None:
    """Chunks so small that a bag of 1,001 instances is several of them in every network."""
    monkeypatch.setitem(CHUNK_ROWS, "cpu", 200)
    for block in (iat_block, nystrom):
        monkeypatch.setattr(block, "CHUNK_TOKENS", 200)
    for part in network.modules():
        for size in ("chunk_rows", "chunk_instances"):
            if hasattr(part, size):
                setattr(part, size, 200)


@pytest.mark.usefixtures("small_chunks")
def test_evaluation_in_chunks_equals_training_mode_s_whole(network: nn.Module, instance: tuple[int, ...]) -> None:
    image = bag(instance, 1_001)
    whole = network(image, return_dict=True)
    with torch.no_grad():
        chunked = network(image, return_dict=True)
    assert whole.keys() == chunked.keys()
    for key in whole:
        # HAG-MIL's scores are ranks: two tiles whose attention differs by rounding only may change places.
        ranks = isinstance(network, HAGMIL) and key == "instance_scores"
        atol = 2 / image.shape[2] if ranks else 1e-6
        torch.testing.assert_close(chunked[key], whole[key], rtol=1e-5, atol=atol)


@pytest.mark.parametrize("network_class", [each for each in NETWORKS if hasattr(each, "pool_chunks")])
def test_a_bag_in_chunks_is_evaluated_whatever_the_mode(network_class: type[nn.Module]) -> None:
    network, instance = build(network_class)
    for part in network.modules():
        if isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.5
    chunks = bag(instance, 30)[0].transpose(0, 1).split(11)
    expected = network.pool_chunks(chunks)
    found = network.train().pool_chunks(chunks)
    assert network.training
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("network_class", [each for each in NETWORKS if issubclass(each, AttentionNetwork)])
def test_a_long_bag_s_answer_is_that_of_the_whole(
    network_class: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, instance = build(network_class)
    image, mask = padded(bag(instance, 60, batch=2), 50)
    whole = network(image, mask, return_dict=True)
    monkeypatch.setattr(attention_network, "LONG_BAG", {"cpu": 0})
    monkeypatch.setitem(CHUNK_ROWS, "cpu", 7)
    for module, name, value in SMALL_STEPS:
        monkeypatch.setattr(module, name, value)
    with torch.no_grad():
        found = network(image, mask, return_dict=True)
        chunks = image[0, :, :50].transpose(0, 1).split(11)
        chunked = network.pool_chunks(chunks) if hasattr(network, "pool_chunks") else {}
    assert found.keys() == whole.keys()
    for key in whole:
        torch.testing.assert_close(found[key], whole[key], rtol=1e-5, atol=1e-6)
    for key, value in chunked.items():
        expected = whole[key][:1]
        axis = contract.KEYS[key].axis
        real = expected if axis is None else expected.narrow(axis + 1, 0, 50)
        torch.testing.assert_close(value, real, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network_class", [each for each in NETWORKS if hasattr(each, "from_reference")])
def test_what_is_no_state_dict_of_the_reference_is_refused(network_class: type[nn.Module]) -> None:
    for other in ({}, {"fc.weight": torch.zeros(2, 2)}, {"model": {"fc.weight": torch.zeros(2, 2)}, "epoch": 3}):
        with pytest.raises(ValueError, match="state dict"):
            network_class.from_reference(other)


def test_the_state_dict_loads_strictly_into_a_second_network(network: nn.Module) -> None:
    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(state, strict=True)
    assert state


def test_a_network_like_it_can_be_made_of_its_arguments(network: nn.Module) -> None:
    again = type(network)(**network.arguments()).state_dict()
    assert {name: value.shape for name, value in network.state_dict().items()} == {n: v.shape for n, v in again.items()}
