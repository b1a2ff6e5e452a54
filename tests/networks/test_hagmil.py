"""HAG-MIL: the search through the levels, lazily the same, levels that learn side by side, and what it refuses."""

from __future__ import annotations

import copy
import io

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from monai_mil.losses import BagCrossEntropy, InstanceSmoothSVM, LevelLoss, MILLoss
from monai_mil.networks import HAGMIL, IAT, instance_scores
from monai_mil.networks.blocks.tree import child_rows, tree_sizes
from tests.conftest import shared

UNIT = 21
SMALL = {"hidden_dims": (16, 24, 16), "instance_channels": 12, "attention_dim": 8, "sampled": 2}


def small(levels: int = 3, k_train=3, k_eval=(4, 5), **settings) -> HAGMIL:
    torch.manual_seed(0)
    return HAGMIL(12, 3, levels, k_train, k_eval, **{**SMALL, **settings}).eval()


class Source:
    """Features of one level that remembers what it was asked for."""

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.features)

    def __call__(self, rows: Tensor) -> Tensor:
        self.asked += rows.tolist()
        return self.features[rows]


def sources(image: Tensor, levels: int = 3) -> list[Source]:
    return [Source(part) for part in image.T.split(tree_sizes(image.shape[1], levels))]


def cascade(network: HAGMIL, image: Tensor, k: list[int]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The method's definition: one level after the other, with nothing packed and children counted one by one."""
    parts = image.T.split(tree_sizes(image.shape[1], len(network.levels)))
    rows, every, outputs = list(range(len(parts[0]))), [], []
    for level, part in zip(network.levels, parts, strict=True):
        every.append(torch.tensor(rows))
        outputs.append(level(part[rows].T[None], return_dict=True))
        if len(outputs) < len(parts):
            scores = outputs[-1]["attention_logits"][0, 0].tolist()
            best = sorted(range(len(rows)), key=lambda index: -scores[index])[: k[len(outputs) - 1]]
            rows = [4 * rows[index] + child for index in best for child in range(4)]
    return every, outputs


@pytest.mark.parametrize("n", [1, 2, 3, 9, 40])
def test_it_is_the_cascade_of_its_levels(n: int) -> None:
    network, image = small().double(), torch.randn(12, UNIT * n, dtype=torch.float64)
    rows, outputs = cascade(network, image, [4, 5])
    packed = network(image[None], return_dict=True)
    torch.testing.assert_close(packed["logits"], outputs[-1]["logits"], rtol=0, atol=1e-12)
    start = 0
    for level, (looked_at, output) in enumerate(zip(rows, outputs, strict=True)):
        scores = packed["attention_logits"][0, level]
        assert (start + looked_at).sort().values.tolist() == scores.isfinite().nonzero()[:, 0].tolist()
        torch.testing.assert_close(scores[start + looked_at], output["attention_logits"][0, 0], rtol=0, atol=1e-12)
        torch.testing.assert_close(packed["level_logits"][:, level], output["logits"], rtol=0, atol=1e-12)
        evidence = packed["instance_logits"][0][:, start + looked_at]
        torch.testing.assert_close(evidence, output["instance_logits"][0], rtol=0, atol=1e-12)
        start += n * 4**level
    torch.testing.assert_close(packed["attention"].sum(dim=2), torch.ones(1, 3, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 2, 9, 60])
def test_reading_lazily_gives_the_same_answer(n: int) -> None:
    network, image = small(), torch.randn(12, UNIT * n)
    whole = network(image[None], return_dict=True)
    read = sources(image)
    lazy = network.train().descend(read)  # an evaluation, whatever the mode
    assert lazy.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(lazy[key], value, rtol=0, atol=1e-5)  # rounding, which the pseudo-inverse enlarges
    assert [len(source.asked) for source in read] == [n, 4 * min(4, n), 4 * min(5, 4 * min(4, n))]
    assert all(len(set(source.asked)) == len(source.asked) for source in read)


def test_tiles_come_in_descending_attention_of_their_parents() -> None:
    network, image = small(), torch.randn(12, UNIT * 30)
    read = sources(image)
    output = network.descend(read)
    order = output["attention_logits"][0, 0, :30].argsort(descending=True)[:4]
    assert read[1].asked == child_rows(order).tolist()


def test_more_to_open_than_there_is_takes_all_in_order_of_attention() -> None:
    network, image = small(k_eval=1000), torch.randn(12, UNIT * 5)
    read = sources(image)
    output = network.descend(read)
    assert output["attention_logits"].isfinite().sum(dim=2).tolist() == [[5, 20, 80]]
    assert read[1].asked == child_rows(output["attention_logits"][0, 0, :5].argsort(descending=True)).tolist()


def test_equal_attention_is_opened_in_the_order_of_the_bag() -> None:
    network, image = small(k_eval=(30, 30)), torch.ones(12, UNIT * 40)
    for level in network.levels:
        torch.nn.init.zeros_(level.blocks[-1].score.weight)
    read = sources(image)
    network.descend(read)
    assert read[1].asked == list(range(120))
    assert read[2].asked == list(range(120))


def test_training_and_evaluation_open_their_own_numbers() -> None:
    network, image = small(k_train=(2, 7)), torch.randn(1, 12, UNIT * 10)
    looked_at = [
        network.train(training)(image, return_dict=True)["attention_logits"].isfinite().sum(dim=2).tolist()
        for training in (False, True)
    ]
    assert looked_at == [[[10, 16, 20]], [[10, 8, 28]]]
    assert "instance_scores" not in network(image, return_dict=True)


@pytest.mark.parametrize("training", [False, True])
def test_choosing_reads_no_value_back_to_the_host(training: bool) -> None:
    """A fake tensor has none: ``item`` or a branch on it raises, where a GPU would have to be waited for."""
    with FakeTensorMode():
        network = small().train(training)
        output = network._search(torch.randn(UNIT * 30, 12))
    assert output["logits"].shape == (1, 3)


def test_numbers_of_tiles_may_be_numpy_s() -> None:
    assert small(k_eval=np.int64(3)).k_eval == [3, 3, 0]
    with pytest.raises(TypeError):
        small(k_eval=3.5)


def test_one_level_is_a_plain_iat() -> None:
    network, image = small(levels=1, k_train=1, k_eval=1), torch.randn(2, 12, 17)
    torch.testing.assert_close(network(image), network.levels[0](image))


def test_padding_and_other_bags_change_nothing() -> None:
    network = small()
    image = torch.randn(3, 12, UNIT * 9)
    mask = torch.zeros(3, UNIT * 9, dtype=torch.bool)
    sizes = [UNIT * 9, UNIT * 4, UNIT]
    for row, size in zip(mask, sizes, strict=True):
        row[:size] = True
    image[1, :, UNIT * 4 :] = torch.nan
    output = network(image, mask, return_dict=True)
    for index, size in enumerate(sizes):
        alone = network(image[index : index + 1, :, :size], return_dict=True)
        for key in ("logits", "level_logits", "attention", "attention_logits", "instance_logits"):
            ours = output[key][index : index + 1]
            if key in ("attention", "attention_logits", "instance_logits"):
                ours = ours[:, :, :size]
            torch.testing.assert_close(ours, alone[key], rtol=0, atol=1e-6)
        torch.testing.assert_close(
            instance_scores(output)[index, :, :size], instance_scores(alone)[0], rtol=0, atol=1e-6
        )
    assert (output["attention"][1, :, UNIT * 4 :] == 0).all()


def test_padding_may_stand_between_the_instances() -> None:
    network, image = small(), torch.randn(1, 12, UNIT * 4)
    mask = torch.zeros(1, UNIT * 5, dtype=torch.bool)
    mask[0, torch.randperm(UNIT * 5)[: UNIT * 4]] = True
    wide = torch.full((1, 12, UNIT * 5), torch.nan)
    wide[:, :, mask[0]] = image
    output, alone = network(wide, mask, return_dict=True), network(image, return_dict=True)
    torch.testing.assert_close(output["logits"], alone["logits"], rtol=0, atol=1e-6)
    torch.testing.assert_close(output["attention"][:, :, mask[0]], alone["attention"], rtol=0, atol=1e-6)


def losses() -> LevelLoss:
    terms = [{"bag": BagCrossEntropy(smoothing), "instance": InstanceSmoothSVM()} for smoothing in (0.1, 0.1, 0.0)]
    return LevelLoss([MILLoss(each, {"bag": 0.5, "instance": 0.5}) for each in terms])


def test_a_joint_step_is_the_levels_own_steps_one_after_the_other() -> None:
    joint = small(k_train=(3, 4), dropout=0.0, attention_dropout=0.0).train()
    single = copy.deepcopy(joint)
    slides = [(torch.randn(12, UNIT * n), torch.tensor([n % 3])) for n in (5, 9, 4, 12, 7)]
    optimizer = torch.optim.Adam(joint.parameters(), lr=1e-2, weight_decay=1e-5)
    loss = losses()
    for image, label in slides:
        optimizer.zero_grad()
        loss(joint(image[None], return_dict=True), label).backward()
        optimizer.step()
    optimizer = torch.optim.Adam(single.parameters(), lr=1e-2, weight_decay=1e-5)
    for image, label in slides:
        parts, rows = image.T.split(tree_sizes(image.shape[1], 3)), torch.arange(image.shape[1] // UNIT)
        for level, (network, part) in enumerate(zip(single.levels, parts, strict=True)):
            optimizer.zero_grad()
            output = network(part[rows].T[None], return_dict=True)
            loss.levels[level](output, label).backward()
            optimizer.step()
            order = output["attention_logits"][0, 0].detach().sort(descending=True, stable=True).indices
            rows = child_rows(rows[order[: (3, 4, 0)[level]]])
    for name, parameter in joint.named_parameters():
        torch.testing.assert_close(parameter, dict(single.named_parameters())[name], rtol=0, atol=0, msg=name)


def test_no_gradient_passes_through_the_choice() -> None:
    network, image = small().train(), torch.randn(1, 12, UNIT * 9)
    network(image, return_dict=True)["logits"].sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in network.levels[0].parameters())
    assert network.levels[2].classifier.weight.grad.any()


def test_every_parameter_learns_from_the_losses() -> None:
    network, image = small().train(), torch.randn(1, 12, UNIT)
    losses()(network(image, return_dict=True), torch.tensor([1])).backward()
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]


def test_half_precision_features_are_gathered_as_they_are() -> None:
    network = small()
    image = torch.randn(1, 12, UNIT * 9).half()
    torch.testing.assert_close(network(image), network(image.float()), rtol=0, atol=1e-6)


def with_a_small_graph(network: HAGMIL) -> HAGMIL:
    """The network with a pseudoinverse of a single step: compilers take their time by the node."""
    for block in (block for level in network.levels for block in level.blocks):
        block.attention.iterations = 1
    return network


def test_script_trace_and_onnx_take_any_slide(tmp_path) -> None:
    network = with_a_small_graph(small(k_eval=(40, 50)))
    stored = io.BytesIO()
    torch.jit.save(torch.jit.script(network), stored)
    stored.seek(0)
    example = torch.randn(1, 12, UNIT * 60)
    forms = [torch.jit.load(stored), torch.jit.trace(network, (example,))]
    path = tmp_path / "network.onnx"
    torch.onnx.export(
        network,
        (example,),
        str(path),
        input_names=["image"],
        output_names=["pred"],
        dynamic_axes={"image": {2: "n"}},
        dynamo=False,
    )
    session = onnxruntime.InferenceSession(path)
    for n in (1, 7, 300):
        image = torch.randn(1, 12, UNIT * n)
        expected = network(image)
        for form in forms:
            torch.testing.assert_close(form(image), expected, rtol=0, atol=1e-5)
        (pred,) = session.run(None, {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(pred), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [20, 22, 1])
def test_a_bag_that_is_not_packed_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="a bag of 3 levels holds 21 instances"):
        small()(torch.randn(1, 12, n))


def test_features_that_are_not_finite_are_named_where_they_are_read() -> None:
    network, image = small(), torch.randn(12, UNIT * 9)
    read = sources(image)
    network.descend(read)
    read[1].features[read[1].asked[2], 0] = torch.nan
    with pytest.raises(ValueError, match="not finite, first in instance 2"):
        network.descend(read)
    with pytest.raises(ValueError, match="2 sources for a network of 3 levels"):
        network.descend(read[:2])
    with pytest.raises(ValueError, match="without instances"):
        network.descend([Source(torch.zeros(0, 12))] * 3)


@pytest.mark.parametrize(("levels", "k"), [(0, 3), (3, (3,)), (3, (3, 0)), (2, (3, 3)), (2, 0)])
def test_levels_and_numbers_that_do_not_fit_are_refused(levels: int, k) -> None:
    with pytest.raises(ValueError, match=r"levels|k_train"):
        HAGMIL(12, 2, levels, k_train=k, k_eval=k, **SMALL)


def test_a_reference_checkpoint_of_three_levels_is_read_finest_last() -> None:
    with np.load(shared("golden/hagmil_iat_777.npz")) as file:
        state = {
            key.removeprefix("weight."): torch.from_numpy(file[key]).float()
            for key in file
            if key.startswith("weight.")
        }
    states = {f"model{level}.{name}": value for level in range(3) for name, value in state.items()}
    states["model2.fc5.bias"] = state["fc5.bias"] + 1
    network = HAGMIL.from_reference(states, k_train=5, k_eval=6)
    assert len(network.levels) == 3
    torch.testing.assert_close(network.levels[0].classifier.bias, state["fc5.bias"].float() + 1)
    torch.testing.assert_close(network.levels[2].classifier.bias, state["fc5.bias"].float())
    assert network.k_eval == [6, 6, 0]
    assert isinstance(HAGMIL.from_reference(state).levels[0], IAT)
    wider = states | {"model1.layers.0.fc.0.weight": torch.zeros(16, 60)}
    with pytest.raises(ValueError, match="not this network's state dict"):
        HAGMIL.from_reference(wider)
    del states["model1.weights.bias"]
    with pytest.raises(ValueError, match="not this network's state dict"):
        HAGMIL.from_reference(states)
    with pytest.raises(ValueError, match="it has the levels"):
        HAGMIL.from_reference({name.replace("model1", "model5"): value for name, value in states.items()})


def test_torch_s_default_onnx_exporter_fits_trees_below_and_above_k(tmp_path):
    torch.manual_seed(0)
    network = HAGMIL(6, 2, levels=2, k_eval=3, hidden_dims=(8,), instance_channels=8, attention_dim=4, sampled=0).eval()
    network = with_a_small_graph(network)
    path = tmp_path / "network.onnx"
    axes = {"image": {2: "n"}}
    torch.onnx.export(network, (torch.randn(1, 6, 20),), path, input_names=["image"], dynamic_axes=axes)
    session = onnxruntime.InferenceSession(path)
    for coarse in (1, 2, 3, 4, 50):
        image = torch.randn(1, 6, 5 * coarse)
        (logits,) = session.run(None, {"image": image.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(image), rtol=0, atol=1e-5)
