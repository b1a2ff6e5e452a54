"""The Integrated Attention Transformer: the reference's numbers, a plain form of it, the smallest and longest bags."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.losses import BagCrossEntropy, InstanceSmoothSVM, MILLoss
from monai_mil.networks import IAT, iat
from monai_mil.networks.blocks import nystrom
from monai_mil.networks.blocks.iat_block import IATBlock
from monai_mil.networks.blocks.nystrom import NystromAttention
from monai_mil.networks.iat import rename_reference
from tests.conftest import shared

CLOSE = {"rtol": 0, "atol": 1e-5}


def small(**settings) -> IAT:
    torch.manual_seed(0)
    return IAT(12, 3, (16, 24, 16), instance_channels=12, attention_dim=8, **settings).eval()


def golden(name: str) -> dict[str, Tensor]:
    with np.load(shared(f"golden/hagmil_iat_{name}.npz")) as file:
        return {key: torch.from_numpy(file[key]) for key in file}


def network_of(file: dict[str, Tensor]) -> IAT:
    state = {key.split(".", 1)[1]: value for key, value in file.items() if key.startswith(("weight.", "buffer."))}
    return IAT.from_reference(state).eval()


@pytest.mark.parametrize("name", ["9", "300", "777"])
def test_the_reference_s_logits_and_attention(name: str) -> None:
    file = golden(name)
    output = network_of(file)(file["input"].mT[None], return_dict=True)
    torch.testing.assert_close(output["logits"], file["out.logits"], **CLOSE)
    torch.testing.assert_close(output["attention_logits"][0], file["out.attention"], **CLOSE)
    torch.testing.assert_close(BagCrossEntropy()(output, file["label"]), file["loss.cross_entropy"], **CLOSE)
    instance = InstanceSmoothSVM()(output, file["label"])
    if name == "9":  # of nine tiles the reference calls seven both, we share them out
        instance = overlapping_instance_loss(output, int(file["label"]))
    torch.testing.assert_close(instance, file["loss.instance_smooth_svm"], **CLOSE)


@pytest.mark.parametrize("n", [1, 3, 40, 100])
def test_a_bag_too_long_to_be_held_gives_the_same(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = small().double(), torch.randn(2, 12, n, dtype=torch.double)
    with torch.no_grad():
        expected = network(image, return_dict=True)
        for module, name, value in (
            (iat, "LONG_BAG", {"cpu": 0}),
            (iat, "STEP_TOKENS", 9),
            (nystrom, "CHUNK_TOKENS", 7),
        ):
            monkeypatch.setattr(module, name, value)
        monkeypatch.setattr(network, "_held", None)
        found = network(image, return_dict=True)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def overlapping_instance_loss(output: dict[str, Tensor], label: int) -> Tensor:
    order = output["attention_logits"][0, 0].argsort(descending=True)
    evidence = output["instance_logits"][0, label]
    margins = torch.cat([evidence[order[:8]], -evidence[order[-8:]]])
    return F.softplus(1 - margins).mean()


@pytest.mark.parametrize("name", ["300", "777"])
def test_the_reference_s_gradients(name: str) -> None:
    file = golden(name)
    network = network_of(file)
    output = network(file["input"].mT[None], return_dict=True)
    terms = {"bag": BagCrossEntropy(), "instance": InstanceSmoothSVM()}
    MILLoss(terms, {"bag": 0.5, "instance": 0.5})(output, file["label"]).backward()
    ours = {name: parameter.grad for name, parameter in network.named_parameters()}
    theirs = {key.removeprefix("grad."): value for key, value in file.items() if key.startswith("grad.")}
    compared = 0
    for key, expected in rename_reference({k: v for k, v in theirs.items() if "instance_classifiers" not in k}).items():
        if key not in ours or ".gates_" in key:
            continue  # the file leaves out the weights of the gates
        scale = expected.abs().max().clamp(min=1)
        torch.testing.assert_close(ours[key] / scale, expected / scale, **CLOSE, msg=lambda text, k=key: f"{k}: {text}")
        compared += 1
    assert compared > 20


class Plain(nn.Module):
    """The same network the straightforward way: every matrix of the attention, and a two-dimensional convolution."""

    def __init__(self, network: IAT) -> None:
        super().__init__()
        self.network = network

    def attention(self, layer: NystromAttention, rows: Tensor) -> Tensor:
        n, width = rows.shape
        e, m = width // layer.heads, layer.landmarks
        padded = torch.cat([rows.new_zeros(-n % m, width), rows])
        query, key, value = (
            part.view(-1, layer.heads, e).transpose(0, 1) for part in (padded @ layer.project.weight.T).chunk(3, dim=1)
        )
        query = query * e**-0.5
        query_marks, key_marks = (part.unflatten(1, (m, -1)).mean(dim=2) for part in (query, key))
        one, two, three = (
            torch.softmax(left @ right.mT, dim=2)
            for left, right in ((query, key_marks), (query_marks, key_marks), (query_marks, key))
        )
        inverse = two.mT / (two.abs().sum(dim=2).max() * two.abs().sum(dim=1).max())
        eye = torch.eye(m, dtype=rows.dtype)
        for _ in range(6):
            product = two @ inverse
            inverse = 0.25 * inverse @ (13 * eye - product @ (15 * eye - product @ (7 * eye - product)))
        mixed = one @ inverse @ (three @ value)
        mixed = mixed + F.conv2d(value[None], layer.mix.weight[..., None], padding=(16, 0), groups=layer.heads)[0]
        return layer.output(mixed.transpose(0, 1).flatten(1))[-n:]

    def block(self, block: IATBlock, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = F.gelu(block.norm_project(block.project(rows)))
        rows = block.residual_scale * rows + self.attention(block.attention, block.norm_attention(rows))
        instances = F.gelu(block.instance(block.norm(rows)))
        tanh, sigmoid = block.gates(instances).chunk(2, dim=1)
        scores = block.score(torch.tanh(tanh) * torch.sigmoid(sigmoid))[:, 0]
        pooled = (torch.softmax(scores, dim=0)[:, None] * rows).sum(dim=0)
        return rows, F.gelu(block.norm_bag(block.bag(block.norm(pooled)))), scores, instances

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bags = []
        for block in self.network.blocks:
            rows, bag, scores, instances = self.block(block, rows)
            bags.append(bag)
        bag = torch.stack(bags, dim=1) @ self.network.fusion.weight[0] + self.network.fusion.bias
        yes_no = self.network.branch.classifiers(instances).unflatten(1, (-1, 2))
        return self.network.classifier(bag), scores, (yes_no[..., 1] - yes_no[..., 0]).T


@pytest.mark.parametrize("n", [1, 2, 7, 9, 17, 96, 97, 333])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_are_those_of_the_plain_form_in_float64(n: int, checkpoint: bool) -> None:
    network = small(checkpoint=checkpoint).double()
    twin = Plain(copy.deepcopy(network))
    rows = torch.randn(n, 12, dtype=torch.float64)
    output = network(rows.T[None], return_dict=True)
    logits, scores, evidence = twin(rows)
    close = {"rtol": 0, "atol": 1e-11}
    torch.testing.assert_close(output["logits"][0], logits, **close)
    torch.testing.assert_close(output["attention_logits"][0, 0], scores, **close)
    torch.testing.assert_close(output["instance_logits"][0], evidence, **close)
    (output["logits"].square().sum() + output["instance_logits"].sin().sum()).backward()
    (logits.square().sum() + evidence.sin().sum()).backward()
    theirs = dict(twin.network.named_parameters())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        expected = theirs[name].grad
        if expected is None or name.endswith("score.bias"):  # whose true gradient is 0: softmax knows no constant
            continue
        error = (parameter.grad - expected).norm() / expected.norm().clamp(min=1e-6)
        assert error < 1e-9, name


def generated(shape: tuple[int, ...], counter: int) -> Tensor:
    """The numbers of spec 8.3 between -1 and 1."""
    i = torch.arange(math.prod(shape))
    return (2 * ((7 * i * i + 7919 * i + 104729 * (counter + 1)) % 10007).double() / 10007 - 1).reshape(shape)


def specified() -> IAT:
    """The network of spec 8.3, in float64."""
    network = IAT(128, 3, (64, 96, 32, 64), residual_scale=float(np.float32(math.sqrt(9 / math.log(9) - 1)))).double()
    counter = iter(range(1000))

    def fill(weight: Tensor, bias: Tensor | None, fan_in: int | None) -> None:
        drawn = generated(tuple(weight.shape), next(counter))
        weight.copy_(1 + 0.1 * drawn if fan_in is None else drawn * math.sqrt(3 / fan_in))
        if bias is not None:
            bias.copy_(0.1 * generated(tuple(bias.shape), next(counter)))

    def linear(layer: nn.Linear) -> None:
        fill(layer.weight, layer.bias, layer.in_features)

    with torch.no_grad():
        for block in network.blocks:
            linear(block.project)
            fill(block.norm_project.weight, block.norm_project.bias, None)
            fill(block.norm_attention.weight, block.norm_attention.bias, None)
            linear(block.attention.project)
            fill(block.attention.mix.weight, None, 33)
            linear(block.attention.output)
            fill(block.norm.weight, block.norm.bias, None)
            linear(block.instance)
            half = block.attention_dim
            for part in (slice(0, half), slice(half, None)):
                fill(block.gates.weight[part], block.gates.bias[part], 512)
            linear(block.score)
            linear(block.bag)
            fill(block.norm_bag.weight, block.norm_bag.bias, None)
        linear(network.fusion)
        linear(network.classifier)
        for head in range(3):
            part = slice(2 * head, 2 * head + 2)
            fill(network.branch.classifiers.weight[part], network.branch.classifiers.bias[part], 512)
    return network.eval()


def test_the_golden_numbers() -> None:
    network = specified()
    output = network(generated((37, 128), 999).T[None], return_dict=True)
    close = {"rtol": 0, "atol": 2e-9}
    expected = torch.tensor([[0.1018765463, -0.5242841119, 0.6829161663]], dtype=torch.float64)
    torch.testing.assert_close(output["logits"], expected, **close)
    scores = output["attention_logits"][0, 0]
    expected = torch.tensor([-0.1491163549, -0.2558336057, -0.1600915651, -0.3112344778], dtype=torch.float64)
    torch.testing.assert_close(scores[:4], expected, **close)
    assert scores.std().item() == pytest.approx(0.2091119, abs=1e-7)
    assert scores.argsort(descending=True)[:5].tolist() == [12, 15, 16, 29, 26]
    assert scores.argsort()[:3].tolist() == [34, 33, 10]
    label = torch.tensor([1])
    terms = {"bag": BagCrossEntropy(label_smoothing=0.1), "instance": InstanceSmoothSVM()}
    loss = MILLoss(terms, {"bag": 0.5, "instance": 0.5})
    loss(output, label).backward()
    assert loss.last["bag"].item() == pytest.approx(1.7657771937, abs=1e-6)  # losses are float32
    assert loss.last["instance"].item() == pytest.approx(1.3182334927, abs=1e-6)
    assert InstanceSmoothSVM(exclusive=True)(output, label).item() == pytest.approx(1.2904099237, abs=1e-6)
    norms = {
        network.blocks[0].project.weight: 2.3157150,
        network.blocks[1].attention.project.weight: 1.9042644,
        network.blocks[2].attention.mix.weight: 0.4847533,
        network.fusion.weight: 0.5825324,
    }
    for parameter, norm in norms.items():
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=2e-6)


def test_parameters_of_the_paper_s_sizes() -> None:
    network = IAT(1024, 2)
    counts = [sum(parameter.numel() for parameter in block.parameters()) for block in network.blocks]
    assert counts == [7_090_697, 13_648_393, 2_892_297, 6_566_409]
    assert sum(parameter.numel() for parameter in network.parameters()) == 30_201_903


def test_the_order_of_the_tiles_matters() -> None:
    network, image = small(), torch.randn(1, 12, 300)
    turned = network(image[:, :, torch.randperm(300)])
    assert (turned - network(image)).abs().max() > 1e-4


@pytest.mark.parametrize("n", [1, 2, 7, 9, 15, 16, 17])
def test_small_bags_show_no_tile_as_both_extremes(n: int) -> None:
    output = small()(torch.randn(1, 12, n), return_dict=True)
    top = output["top_instance_logits"].isfinite().all(dim=1).sum().item()
    bottom = output["bottom_instance_logits"].isfinite().all(dim=1).sum().item()
    assert top == min(8, max(1, n // 2))
    assert bottom == min(top, n - 1)
    assert InstanceSmoothSVM()(output, torch.tensor([1])).isfinite()


def test_dropout_is_at_work_in_training_and_nowhere_else() -> None:
    network, image = small(), torch.randn(1, 12, 40)
    torch.testing.assert_close(network(image), network(image), rtol=0, atol=0)
    network.train()
    assert not torch.equal(network(image), network(image))
    network = small(dropout=0.0, attention_dropout=0.0)
    torch.testing.assert_close(network.train()(image), network.eval()(image), rtol=0, atol=0)


def test_checkpointing_changes_no_gradient_with_dropout_either() -> None:
    image, gradients = torch.randn(1, 12, 60), []
    for checkpoint in (False, True):
        network = small(checkpoint=checkpoint).train()
        torch.manual_seed(3)
        network(image).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, expected in gradients[0].items():
        if expected is not None:
            torch.testing.assert_close(gradients[1][name], expected, rtol=0, atol=1e-6)


def test_padding_that_is_masked_changes_nothing_when_a_tile_comes_in() -> None:
    layer = NystromAttention(16, landmarks=8)
    masked = NystromAttention(16, landmarks=8, mask_padding=True)
    masked.load_state_dict(layer.state_dict())
    same = torch.randn(1, 1, 16).expand(1, 97, 16)
    assert (layer(same)[:, 50] - layer(same[:, 1:])[:, 50]).abs().max() > 1e-3
    torch.testing.assert_close(masked(same)[:, 50], masked(same[:, 1:])[:, 50], **CLOSE)


@pytest.mark.parametrize("n", [1, 5, 12, 13, 100, 9000])
def test_masked_padding_takes_any_bag(n: int) -> None:
    network, image = small(mask_padding=True), torch.randn(1, 12, n)
    with torch.no_grad():
        chunked = network(image)
    torch.testing.assert_close(chunked, network(image), rtol=0, atol=1e-5)
    assert chunked.isfinite().all()


@pytest.mark.parametrize("with_gradients", [False, True])
def test_bfloat16_keeps_scores_and_pseudo_inverse_in_float32(
    with_gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, image = small(), torch.randn(1, 12, 500)
    seen = []
    factor = nystrom._factor

    def spy(product, right):
        result = factor(product, right)
        seen.extend([product.dtype, right.dtype, result.dtype])
        return result

    monkeypatch.setattr(nystrom, "_factor", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(with_gradients):
        output = network(image, return_dict=True)
    for key in ("logits", "attention_logits", "instance_logits", "bag"):
        assert output[key].dtype == torch.float32
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize(
    "broken", ["fc5.weight", "layers.0.fc.0.weight", "weights.bias", "instance_classifiers.0.bias"]
)
def test_a_checkpoint_of_another_network_is_refused(broken: str) -> None:
    file = golden("777")
    state = {key.removeprefix("weight."): value for key, value in file.items() if key.startswith("weight.")}
    del state[broken]
    with pytest.raises(ValueError, match="not this network's state dict"):
        IAT.from_reference(state)


def test_plain_attention_has_no_sigmoid() -> None:
    network = small(gated=False)
    output = network(torch.randn(1, 12, 9), return_dict=True)
    block, looked = network.blocks[-1], {}
    block.register_forward_hook(lambda module, given, made: looked.update(instances=made[3]))
    network(torch.randn(1, 12, 9))
    again = network(torch.ones(1, 12, 9), return_dict=True)
    expected = block.score(torch.tanh(block.gates(looked["instances"]))).squeeze(2)
    torch.testing.assert_close(again["attention_logits"][:, 0], expected)
    assert block.gates.out_features == 8
    assert output["logits"].isfinite().all()


@pytest.mark.parametrize("gated", [True, False])
def test_a_class_token_takes_in_every_block_s_pooling(gated: bool) -> None:
    network = small(class_token=True, gated=gated).double()
    image = torch.randn(2, 12, 9, dtype=torch.double)
    output = network(image, return_dict=True)
    tokens = torch.cat([network.token.expand(2, -1, -1), image.mT], dim=1)
    for block in network.blocks:
        tokens = block._attend(block._enter(tokens))
        _, scores = block._score(tokens[:, 1:])
        tokens[:, 0] += (scores.softmax(dim=1)[:, :, None] * tokens[:, 1:]).sum(dim=1)
    bag = F.gelu(block.norm_bag(block.bag(block.norm(tokens[:, 0]))))
    torch.testing.assert_close(output["logits"], network.classifier(bag))
    torch.testing.assert_close(output["attention_logits"][:, 0], scores)
    assert output["instance_logits"].shape == (2, 3, 9)
    torch.testing.assert_close(torch.jit.script(network)(image), output["logits"])
    output["logits"].sum().backward()
    assert network.token.grad is not None
    mask = torch.arange(9)[None] < torch.tensor([[9], [4]])
    padded = network(image, mask, return_dict=True)
    torch.testing.assert_close(padded["logits"][1], network(image[1:, :, :4])[0])
