"""INSIGHT: the reference's numbers, exact gradients in chunks, little memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu
from torch import Tensor, nn
from torch.nn import functional as F

from monai_mil.bags import BagFile, BagInfo, LoadBagd, collate_bags
from monai_mil.losses import BagBCE, MILLoss, SpectralDecoupling
from monai_mil.networks import INSIGHT, instance_scores
from monai_mil.networks.reference.insight import insight_name as renamed
from monai_mil.training import prepare_token_batch
from tests.conftest import shared
from tests.memory import peak_of
from tests.networks import insight_recipe

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(params=["binary", "multilabel"])
def reference(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    with np.load(shared(f"golden/insight_{request.param}.npz")) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def channel_first(maps: Tensor) -> Tensor:
    """A batch of one bag, ``[1, c, n, h, w]``, of tiles ``[n, c, h, w]``."""
    return maps.float().transpose(0, 1)[None]


def loss_of(output: dict[str, Tensor], label: Tensor, smoothing: float, decoupling: float) -> Tensor:
    """The paper's loss in the precision of the output: cross-entropy of the probability, spectral decoupling."""
    target = label.to(output["prob"]) * (1 - smoothing) + smoothing / 2
    penalty = decoupling / 2 * output["detection_logits"].square().mean()
    return F.binary_cross_entropy(output["prob"], target[None]) + penalty


@pytest.mark.parametrize("chunk", [1, 2, 32])
def test_the_reference_s_maps_and_gradients_are_reproduced(reference: dict[str, Tensor], chunk: int) -> None:
    weights = {name.removeprefix("weight."): value for name, value in reference.items() if name.startswith("weight.")}
    network = INSIGHT.from_reference(weights)
    network.chunk_instances = chunk
    output = network(channel_first(reference["input"]), return_dict=True)
    heatmap, threshold = output["heatmap"], output["threshold"]
    torch.testing.assert_close(heatmap, channel_first(reference["out.heatmap_before_threshold"]), **CLOSE)
    torch.testing.assert_close(threshold[0], reference["out.otsu_threshold"], rtol=0, atol=1e-7)
    foreground = heatmap * (heatmap > threshold[:, :, None, None, None])
    torch.testing.assert_close(foreground, channel_first(reference["out.heatmap"]), **CLOSE)
    torch.testing.assert_close(output["prob"][0], reference["out.prob_smoothmax8"], **CLOSE)
    smoothing, decoupling = float(reference["meta.label_smoothing"]), float(reference["meta.lambda_sd"])
    terms = {"bag": BagBCE(smoothing), "decoupling": SpectralDecoupling()}
    loss = MILLoss(terms, {"decoupling": decoupling})
    loss(output, reference["label"][None]).backward()
    torch.testing.assert_close(loss.last["bag"], reference["loss.bce"], **CLOSE)
    torch.testing.assert_close(decoupling * loss.last["decoupling"], reference["loss.spectral_decoupling"], **CLOSE)
    gradients = {name: parameter.grad for name, parameter in network.tiles.named_parameters()}
    for name, expected in reference.items():
        if name.startswith("grad."):
            got = gradients[renamed(name.removeprefix("grad."))]
            expected = expected.permute(1, 2, 0) if expected.dim() == 3 else expected
            assert (got - expected).norm() / expected.norm() < 5e-5, name


def test_the_specification_s_golden_numbers() -> None:
    network = insight_recipe.network()
    network.chunk_instances = 4
    output = network(insight_recipe.image(), return_dict=True)
    heatmap, threshold = output["heatmap"][0], output["threshold"][0]

    def close(got: Tensor, *expected: float) -> None:
        torch.testing.assert_close(got.flatten(), torch.tensor(expected, dtype=torch.double), rtol=1e-9, atol=1e-9)

    close(torch.stack([heatmap.min(), heatmap.max()]), 0.005105781, 0.911870992)
    close(heatmap[0, 0, 0, :3], 0.2133515455, 0.1053681040, 0.0196835229)
    close(heatmap[1, 5, 13, 11:], 0.4988730635, 0.3983552630, 0.3108520197)
    close(threshold, 0.3008670904, 0.3007178941)
    kept = heatmap > threshold[:, None, None, None]
    assert kept.flatten(1).sum(1).tolist() == [339, 378]
    close((heatmap * kept).flatten(1).sum(1), 153.2351078, 164.1252904)
    close(output["prob"], 0.5927252100, 0.5429677271)
    label = torch.tensor([1.0, 0.0])
    close(loss_of(output, label, 0.1, 0.0), 0.6580864970)
    close(0.01 * SpectralDecoupling()(output, label[None]), 0.0057774888)
    loss_of(output, label, 0.1, 0.01).backward()
    tiles = network.tiles
    close(tiles.projection.convolution.weight.grad.norm(), 2.4312476738)
    close(tiles.context_score.weight.grad.norm(), 0.7898943605)
    close(tiles.detection_score.bias.grad.norm(), 0.1435156636)
    close(tiles.context[0].scale.grad.norm(), 0.0385612798)


class PlainINSIGHT(nn.Module):
    """The specification's layers one after the other, channels first, under the reference's names."""

    def __init__(self, in_channels: int, labels: int, grid: tuple[int, int]) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
            border = [nn.ReplicationPad2d(1)] if kernel == 3 else []
            return [*border, nn.Conv2d(inputs, outputs, kernel), nn.GELU(), nn.LayerNorm((outputs, *grid))]

        def branch(kernel: int) -> nn.Sequential:
            hidden = [*layer(128, 128, kernel), *layer(128, 64, kernel), *layer(64, 64, kernel)]
            return nn.Sequential(*hidden, *layer(64, labels, kernel)[:-2])

        self.reduce_dimension_block = nn.Sequential(*layer(in_channels, 128, 1))
        self.backbone_block, self.context_block = branch(1), branch(3)

    def forward(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        reduced = self.reduce_dimension_block(tiles)
        detection = self.backbone_block(reduced)
        return detection.sigmoid() * (1 - self.context_block(reduced).sigmoid()), detection


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_it_equals_the_plain_layers_in_float64(chunk: int) -> None:
    torch.manual_seed(0)
    plain = PlainINSIGHT(24, 2, (6, 5))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network = INSIGHT.from_reference(plain.state_dict()).double()
    network.chunk_instances = chunk
    image, label = torch.randn(1, 24, 40, 6, 5, dtype=torch.double), torch.tensor([1.0, 0.0])
    output = network(image, return_dict=True)
    loss_of(output, label, 0.1, 0.05).backward()

    heatmap, detection = plain.double()(image[0].transpose(0, 1))
    rows = heatmap.transpose(0, 1).flatten(1)
    thresholds = torch.tensor([threshold_otsu(row.detach().numpy()) for row in rows])
    foreground = rows * (rows > thresholds[:, None])
    prob = (torch.softmax(8 * foreground, 1) * foreground).sum(1)
    loss_of({"prob": prob[None], "detection_logits": detection}, label, 0.1, 0.05).backward()

    torch.testing.assert_close(output["threshold"][0], thresholds, rtol=0, atol=1e-12)
    torch.testing.assert_close(output["heatmap"], heatmap.transpose(0, 1)[None], rtol=0, atol=1e-12)
    torch.testing.assert_close(output["prob"][0], prob, rtol=1e-12, atol=0)
    gradients = {name: parameter.grad for name, parameter in network.tiles.named_parameters()}
    for name, parameter in plain.named_parameters():
        expected = parameter.grad.permute(1, 2, 0) if parameter.dim() == 3 else parameter.grad
        assert (gradients[renamed(name)] - expected).norm() <= 1e-9 * expected.norm(), name


def trained(network: INSIGHT, image: Tensor, chunk: int, mask: Tensor | None = None) -> list[Tensor]:
    """Probability, loss and all gradients, those of the input too, of one step."""
    network.chunk_instances = chunk
    network.zero_grad()
    image = image.detach().requires_grad_()
    output = network(image, mask, return_dict=True)
    loss = loss_of(output, torch.tensor([1.0, 0.0, 1.0]), 0.1, 0.05) if mask is None else output["prob"].square().sum()
    loss.backward()
    return [output["prob"], loss, image.grad, *(p.grad.clone() for p in network.parameters())]


def small(**options: object) -> INSIGHT:
    torch.manual_seed(0)
    return INSIGHT(10, 3, **({"grid": (5, 4), "reduced": 8, "widths": (8, 6, 6)} | options)).double()


@pytest.mark.parametrize(
    "options",
    [{}, {"norm": "group"}, {"projection": "linear"}, {"pool_over": "foreground"}],
    ids=lambda options: "-".join(options.values()) or "paper",
)
def test_neither_result_nor_gradient_depends_on_the_chunk(options: dict[str, str]) -> None:
    network = small(**options)
    image = torch.randn(1, 10, 23, 5, 4, dtype=torch.double)
    whole = trained(network, image, 23)
    for chunk in (1, 7):
        for got, expected in zip(trained(network, image, chunk), whole, strict=True):
            assert (got - expected).norm() <= 1e-9 * expected.norm() + 1e-18


@pytest.mark.parametrize("chunk", [1, 4, 50])
def test_chunks_take_a_mask_with_holes(chunk: int) -> None:
    network = small()
    image = torch.randn(2, 10, 12, 5, 4, dtype=torch.double)
    mask = torch.rand(2, 12) < 0.6
    mask[:, 3] = True
    got = trained(network, image, chunk, mask)
    prob, gradients = [], []
    for bag, real in zip(image, mask, strict=True):
        alone = trained(network, bag[None, :, real], 50, torch.ones(1, int(real.sum()), dtype=torch.bool))
        prob.append(alone[0])
        gradients.append(alone[3:])
    torch.testing.assert_close(got[0], torch.cat(prob))
    for index, gradient in enumerate(got[3:]):
        torch.testing.assert_close(gradient, gradients[0][index] + gradients[1][index])
    assert (got[2].movedim(1, 2)[~mask] == 0).all()


@pytest.mark.parametrize("pool_over", ["all", "foreground"])
def test_masked_tokens_leave_threshold_pool_and_map(pool_over: str) -> None:
    network = small(pool_over=pool_over, chunk_instances=4)
    image = torch.randn(2, 10, 9, 5, 4, dtype=torch.double)
    mask = torch.rand(2, 9, 5, 4) < 0.7
    mask[0, 2] = False
    output = network(image, mask, return_dict=True)
    everything = network(image, return_dict=True)["heatmap"]
    for bag, real in enumerate(mask):
        for label in range(3):
            values = everything[bag, label][real]
            threshold = threshold_otsu(values.detach().numpy())
            pooled = values * (values > threshold)
            pooled = pooled[values > threshold] if pool_over == "foreground" else pooled
            assert abs(float(output["threshold"][bag, label]) - threshold) < 1e-12
            torch.testing.assert_close(output["prob"][bag, label], (torch.softmax(8 * pooled, 0) * pooled).sum())
            torch.testing.assert_close(output["heatmap"][bag, label], everything[bag, label] * real)
    torch.testing.assert_close(output["token_mask"], mask)
    assert output["mask"].sum(1).tolist() == [8, 9]
    alone = network.pool_chunks(image[0].transpose(0, 1).split(2), mask[0])
    torch.testing.assert_close(alone["prob"][0], output["prob"][0])
    torch.testing.assert_close(alone["heatmap"][0], output["heatmap"][0])


def test_a_mask_of_another_bag_is_refused() -> None:
    network, image = small(), torch.zeros(1, 10, 3, 5, 4, dtype=torch.double)
    with pytest.raises(ValueError, match=r"bool \[1, 3, 4, 5\], does not fit a bag \[1, 10, 3, 5, 4\]"):
        network(image, torch.ones(1, 3, 4, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"torch.float32 \[1, 3, 5, 4\], does not fit a bag .*: bool \[b, n, h, w\]"):
        network(image, torch.ones(1, 3, 5, 4))
    with pytest.raises(ValueError, match="the mask must be bool"):
        network.pool_chunks([torch.randn(3, 10, 5, 4)], torch.ones(4, dtype=torch.bool))


def codes_of(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A bag ``[1, d, n, h, w]`` as bytes, and their scale and offset ``[1, d]``."""
    rows = image[0].flatten(1)
    low, high = rows.amin(1), rows.amax(1)
    scale = (high - low) / 255
    steps = ((rows - low[:, None]) / scale[:, None]).round().to(torch.uint8)
    return steps.reshape(image.shape), scale[None], low[None]


@pytest.mark.parametrize("masked", [False, True])
def test_bytes_and_masked_tokens_do_not_depend_on_the_chunk_and_equal_their_floats(masked: bool) -> None:
    network = small()
    codes, scale, offset = codes_of(torch.randn(1, 10, 23, 5, 4, dtype=torch.double))
    decoded = offset[:, :, None, None, None] + scale[:, :, None, None, None] * codes
    mask = torch.rand(1, 23, 5, 4) < 0.8 if masked else None
    label = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.double)

    def step(chunk: int, image: Tensor, **keywords: Tensor) -> list[Tensor]:
        network.chunk_instances = chunk
        network.zero_grad()
        output = network(image, mask, return_dict=True, **keywords)
        loss = F.binary_cross_entropy(output["prob"], label) + 0.05 * SpectralDecoupling()(output, label)
        loss.backward()
        return [output["prob"], output["heatmap"], *(p.grad.clone() for p in network.parameters())]

    expected = step(23, decoded)
    for chunk in (1, 7, 23):
        for got, want in zip(step(chunk, codes, scale=scale, offset=offset), expected, strict=True):
            assert (got - want).norm() <= 1e-9 * want.norm() + 1e-18


def test_codes_come_with_a_scale_and_features_without() -> None:
    network = small()
    codes, scale, offset = codes_of(torch.randn(1, 10, 3, 5, 4, dtype=torch.double))
    with pytest.raises(ValueError, match="uint8 codes with 'scale' and 'offset'"):
        network(codes)
    with pytest.raises(ValueError, match="uint8 codes with 'scale' and 'offset'"):
        network(codes.double(), scale=scale)
    with pytest.raises(ValueError, match="uint8 codes with 'scale' and 'offset'"):
        network.pool_chunks([codes[0].transpose(0, 1)])
    with pytest.raises(ValueError, match=r"are \[1, 10\], got \[10\]"):
        network(codes, scale=scale[0], offset=offset[0])


def test_a_scripted_network_takes_codes_and_masks_of_tokens() -> None:
    network = small(chunk_instances=4).eval()
    scripted = torch.jit.script(network)
    codes, scale, offset = codes_of(torch.randn(1, 10, 9, 5, 4, dtype=torch.double))
    codes, scale, offset = codes.repeat(2, 1, 1, 1, 1), torch.cat([scale, 2 * scale]), torch.cat([offset, -offset])
    mask = torch.rand(2, 9, 5, 4) < 0.7
    with torch.no_grad():
        expected = network(codes, mask, scale=scale, offset=offset)
        torch.testing.assert_close(scripted(codes, mask, False, scale, offset), expected)
        torch.testing.assert_close(expected[1:], network(codes[1:], mask[1:], scale=scale[1:], offset=offset[1:]))


def test_a_trace_takes_codes_of_bags_of_any_size() -> None:
    class OfCodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
            return self.network(codes, scale=scale, offset=offset)

    network = small(chunk_instances=4).eval()
    bags = [codes_of(torch.randn(1, 10, n, 5, 4, dtype=torch.double)) for n in (3, 9)]
    with torch.no_grad():
        traced = torch.jit.trace(OfCodes(), bags[0])
        for codes, scale, offset in bags:
            expected = network(codes, scale=scale, offset=offset)
            torch.testing.assert_close(traced(codes, scale, offset), expected)


def vit_like(n: int, channels: int) -> np.ndarray:
    """Tokens ``[n, d, 14, 14]`` as vision transformers give them: smooth, a few channels a hundred times the others."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((n, 14, 14, channels), np.float32)
    tokens += np.repeat(np.repeat(rng.standard_normal((n, 7, 7, channels), np.float32), 2, 1), 2, 2)
    size = np.exp(rng.normal(0, 0.5, channels)).astype(np.float32)
    size[:: channels // 4] *= 100
    return (tokens * size + rng.standard_normal(channels).astype(np.float32) * size).transpose(0, 3, 1, 2)


def test_bytes_change_heatmap_mask_and_probability_little(tmp_path: Path) -> None:
    """The benchmark ``insight`` measures the same on 1024 channels."""
    tokens = vit_like(60, 128)
    torch.manual_seed(0)
    network = INSIGHT(128, 1).eval()
    with torch.no_grad():
        network.tiles.detection_score.weight *= 10
        network.tiles.context_score.weight *= 10
    outputs = {}
    for storage in ("float16", "uint8"):
        path = tmp_path / f"{storage}.h5"
        BagFile.write(path, tokens, np.zeros((60, 2), int), BagInfo("slide"), storage=storage)
        image, _, _, keywords = prepare_token_batch(collate_bags([LoadBagd(mapped=True)({"image": str(path)})]))
        with torch.no_grad():
            outputs[storage] = network(image, return_dict=True, **keywords)
    half, byte = outputs["float16"], outputs["uint8"]
    error = (half["heatmap"] - byte["heatmap"]).abs()
    masks = [output["heatmap"] > output["threshold"][..., None, None, None] for output in (half, byte)]
    dice = 2 * (masks[0] & masks[1]).sum() / (masks[0].sum() + masks[1].sum())
    assert error.max() < 0.15
    assert error.mean() < 0.01
    assert dice > 0.99
    assert (half["prob"] - byte["prob"]).abs() < 1e-3


def test_gradients_of_chunks_are_those_of_finite_differences() -> None:
    network = small(chunk_instances=2, pool_over="foreground", grid=(3, 4), reduced=4, widths=(4, 3, 3))
    image = torch.randn(1, 10, 3, 3, 4, dtype=torch.double, requires_grad=True)
    maps = ("heatmap", "detection_logits", "prob")

    def run(image: Tensor, *_: Tensor) -> list[Tensor]:
        output = network(image, return_dict=True)
        return [output[key] for key in maps]

    inputs = (image, network.tiles.context[1].shift, network.tiles.detection_score.weight)
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("frozen", [("projection",), ("projection", "detection")])
def test_frozen_parts_get_no_gradient_and_the_others_the_same(frozen: tuple[str, ...]) -> None:
    network = small()
    image = torch.randn(1, 10, 9, 5, 4, dtype=torch.double)
    everything = dict(zip(dict(network.named_parameters()), trained(network, image, 4)[3:], strict=True))
    network.zero_grad(set_to_none=True)
    still = tuple(f"tiles.{part}" for part in frozen)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(still))
    loss_of(network(image, return_dict=True), torch.tensor([1.0, 0.0, 1.0]), 0.1, 0.05).backward()
    for name, parameter in network.named_parameters():
        if name.startswith(still):
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, everything[name])


def test_a_bag_in_chunks_from_elsewhere_equals_the_whole_bag() -> None:
    network = small().float().eval()
    tiles = torch.randn(1000, 10, 5, 4).half()
    chunks = [tiles[:0], *tiles.split(77)]
    output = network.pool_chunks(chunk.numpy() for chunk in chunks)
    whole = network(tiles.transpose(0, 1)[None], return_dict=True)
    assert output.keys() == whole.keys()
    for key in output:
        torch.testing.assert_close(output[key], whole[key], rtol=1e-5, atol=1e-6)


def test_chunks_are_checked_like_a_bag() -> None:
    network = small().float()
    with pytest.raises(ValueError, match="without instances"):
        network.pool_chunks([])
    broken = torch.zeros(9, 10, 5, 4)
    broken[7, 2, 1, 1] = torch.inf
    with pytest.raises(ValueError, match="not finite, first in instance 7"):
        network.pool_chunks(broken.split(4))
    with pytest.raises(ValueError, match="grid 5 x 4"):
        network.pool_chunks([torch.zeros(3, 10, 4, 4)])


def test_weights_that_diverged_are_not_taken_for_features_that_are_not_finite() -> None:
    network, image = small(), torch.randn(1, 10, 3, 5, 4, dtype=torch.double)
    with torch.no_grad():
        network.tiles.context[1].shift[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"weights are not finite, first 'tiles\.context\.1\.shift'.*has diverged"):
        network(image)


def test_features_too_large_for_half_precision_are_told_of() -> None:
    network = INSIGHT(64, 1, grid=(2, 2), reduced=8, widths=(8, 6, 6))
    image = torch.full((1, 64, 2, 2, 2), 65504.0)
    with torch.no_grad():
        network.tiles.projection.convolution.weight.fill_(0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(image).isfinite().all()
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(ValueError, match="too large for autocast's float16"),
    ):
        network(image)


def test_one_token_of_a_bag_that_is_left_answers_by_itself() -> None:
    """Beside a whole bag in the batch, whose answer it does not touch."""
    network = small(chunk_instances=2)
    image = torch.randn(2, 10, 5, 5, 4, dtype=torch.double)
    mask = torch.zeros(2, 5, 5, 4, dtype=torch.bool)
    mask[0, 3, 4, 1] = mask[1] = True
    with pytest.warns(UserWarning, match="the same everywhere"):
        output = network(image, mask, return_dict=True)
    token = output["heatmap"][0, :, 3, 4, 1]
    torch.testing.assert_close(output["prob"][0], token)
    assert output["heatmap"][0].count_nonzero() == 3
    torch.testing.assert_close(output["prob"][1:], network(image[1:], return_dict=True)["prob"])
    gradient = torch.autograd.grad(output["prob"][0].sum(), network.tiles.detection_score.bias)[0]
    assert gradient.isfinite().all()
    assert (gradient > 0).all()


def test_a_million_tiles_are_evaluated_in_chunks() -> None:
    torch.manual_seed(0)
    network = INSIGHT(4, 1, grid=(1, 2), reduced=4, widths=(4, 4, 4), chunk_instances=8192).eval()
    block = torch.randn(50_000, 4, 1, 2)
    output = network.pool_chunks(block for _ in range(20))
    assert output["heatmap"].shape == (1, 1, 1_000_000, 1, 2)
    with torch.no_grad():
        once = network(block.transpose(0, 1)[None], return_dict=True)
    # The same map twenty times over has the same histogram, threshold and weighted mean.
    torch.testing.assert_close(output["prob"], once["prob"], rtol=0, atol=1e-6)
    torch.testing.assert_close(output["threshold"], once["threshold"], rtol=0, atol=0)


def test_training_from_disk_holds_one_chunk_in_memory(tmp_path: Path) -> None:
    """160 float16 tiles of 14 x 14 x 128 take 8 MB, their activations in one piece 0.24 GB."""
    torch.manual_seed(0)
    path = tmp_path / "tiles.npy"
    np.save(path, np.random.default_rng(0).standard_normal((160, 14, 14, 128)).astype(np.float16))
    network = INSIGHT(128, 1, chunk_instances=8)

    def step(count: int) -> None:
        image = torch.from_numpy(np.load(path, mmap_mode="c")[:count]).movedim(-1, 0)[None]
        MILLoss({"bag": BagBCE()})(network(image, return_dict=True), torch.ones(1, 1)).backward()

    step(32)
    few, many = peak_of(lambda: step(32)), peak_of(lambda: step(160))
    assert many - few < 30e6
    assert many < 150e6


def test_a_scripted_network_holds_one_chunk_in_memory() -> None:
    network = torch.jit.script(INSIGHT(16, 1, chunk_instances=8).eval())
    image = torch.randn(1, 600, 14, 14, 16).movedim(-1, 1)
    with torch.no_grad():
        for _ in range(3):
            network(image[:, :, :16])
        assert peak_of(lambda: network(image)) < 100e6


def test_bfloat16_training_follows_float32() -> None:
    """Bags of several chunks and of one in the same autocast region: what one casts must not starve the other."""
    network = INSIGHT(32, 1, grid=(6, 6), reduced=16, widths=(16, 8, 8), chunk_instances=4)
    image = torch.randn(1, 32, 15, 6, 6)
    gradients = []
    for enabled in (False, True):
        network.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            outputs = [network(bag, return_dict=True) for bag in (image, image[:, :, :3])]
            loss = sum(output["detection_logits"].square().mean() + output["prob"].sum() for output in outputs)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (37, 37)])
def test_any_token_grid_can_be_built(grid: tuple[int, int]) -> None:
    network = INSIGHT(8, 2, grid=grid)
    output = network(torch.randn(1, 8, 2, *grid), return_dict=True)
    assert output["heatmap"].shape == (1, 2, 2, *grid)
    assert instance_scores(output).shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("sizes", "parameters"), [((1024, 14), 669_954), ((1280, 16), 779_522), ((1024, 37), 2_171_394)]
)
def test_the_network_is_the_published_one(sizes: tuple[int, int], parameters: int) -> None:
    channels, side = sizes
    network = INSIGHT(channels, 1, grid=(side, side))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_group_norm_starts_as_the_paper_s_layer_norm_and_takes_any_grid() -> None:
    layer, group = small(), small(norm="group", grid=None)
    state = {n: p if group.state_dict()[n].shape == p.shape else p[0, 0] for n, p in layer.state_dict().items()}
    group.load_state_dict(state)
    image = torch.randn(1, 10, 3, 5, 4, dtype=torch.double)
    torch.testing.assert_close(group(image), layer(image))
    assert group(torch.randn(1, 10, 2, 9, 7, dtype=torch.double)).shape == (1, 3)


def test_a_linear_projection_has_no_normalisation() -> None:
    network = small(projection="linear")
    assert isinstance(network.tiles.projection, torch.nn.Conv2d)
    assert network(torch.randn(1, 10, 2, 5, 4, dtype=torch.double)).isfinite().all()


def test_foreground_probability_is_smooth_max_of_what_otsu_keeps() -> None:
    network = small(pool_over="foreground")
    output = network(torch.randn(1, 10, 30, 5, 4, dtype=torch.double), return_dict=True)
    for heatmap, threshold, prob in zip(output["heatmap"][0], output["threshold"][0], output["prob"][0], strict=True):
        kept = heatmap[heatmap > threshold]
        torch.testing.assert_close((torch.softmax(8 * kept, 0) * kept).sum(), prob)


def test_without_context_the_heatmap_is_the_detection() -> None:
    network = small(context=False)
    output = network(torch.randn(1, 10, 6, 5, 4, dtype=torch.double), return_dict=True)
    torch.testing.assert_close(output["heatmap"], output["detection_logits"].sigmoid())
    output["logits"].sum().backward()
    assert not any("context" in name for name, _ in network.named_parameters())
    assert network.tiles.detection_score.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("pool_over", ["all", "foreground"])
@pytest.mark.parametrize("pooling", ["max", "mean", "lp"])
def test_other_poolings_are_those_of_what_otsu_keeps(pooling: str, pool_over: str) -> None:
    network = small(pooling=pooling, pool_over=pool_over, alpha=3.0)
    image, mask = torch.randn(1, 10, 9, 5, 4, dtype=torch.double), torch.arange(9)[None] < 7
    output = network(image, mask, return_dict=True)
    for heatmap, threshold, prob in zip(output["heatmap"][0], output["threshold"][0], output["prob"][0], strict=True):
        tokens = heatmap[:7]
        values = tokens[tokens > threshold] if pool_over == "foreground" else tokens * (tokens > threshold)
        expected = {"max": values.max(), "mean": values.mean(), "lp": values.pow(3).mean().pow(1 / 3)}[pooling]
        torch.testing.assert_close(prob, expected)
    output["logits"].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_a_flat_heatmap_is_kept_whole_and_told_of() -> None:
    network = small()
    with torch.no_grad():
        for score in (network.tiles.detection_score, network.tiles.context_score):
            score.weight.zero_()
    network.chunk_instances = 2
    with pytest.warns(UserWarning, match="the same everywhere"):
        output = network(torch.randn(1, 10, 6, 5, 4, dtype=torch.double), return_dict=True)
    heatmap = output["heatmap"]
    assert (heatmap > output["threshold"][:, :, None, None, None]).all()
    torch.testing.assert_close(output["prob"], heatmap[:, :, 0, 0, 0])
    output["logits"].sum().backward()
    assert network.tiles.detection_score.bias.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:a heatmap is the same everywhere")
def test_logits_are_those_of_the_probability_and_finite() -> None:
    network = small()
    image = torch.randn(4, 10, 6, 5, 4, dtype=torch.double)
    output = network(image, return_dict=True)
    torch.testing.assert_close(output["logits"].sigmoid(), output["prob"])
    with torch.no_grad():
        for bias, expected in ((60.0, 0.999), (-60.0, 1e-12)):
            network.tiles.detection_score.bias.fill_(bias)
            network.tiles.context_score.bias.fill_(-60.0)
            network.tiles.context_score.weight.zero_()
            network.tiles.detection_score.weight.mul_(1e-3)
            logits = network(image)
            torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, expected))


def test_bags_it_was_not_made_for_are_refused() -> None:
    network = small()
    with pytest.raises(ValueError, match=r"takes bags \[b, 10, n, h, w\]"):
        network(torch.zeros(1, 12, 3, 5, 4))
    with pytest.raises(ValueError, match=r"takes bags \[b, 10, n, h, w\]"):
        network(torch.zeros(1, 10, 3))
    with pytest.raises(ValueError, match="grid 5 x 4, the bag has 14 x 14"):
        network(torch.zeros(1, 10, 3, 14, 14))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batch"}, "norm must be one of layer, group"),
        ({"projection": "none"}, "projection must be one of conv_gelu_ln, linear"),
        ({"pool_over": "some"}, "pool_over must be one of all, foreground"),
        ({"pooling": "median"}, "pooling must be one of smooth_max, max, mean, lp"),
        ({"grid": None}, "needs the token grid"),
        ({"chunk_instances": 0}, "at least 1, got 0"),
    ],
)
def test_options_that_do_not_exist_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_another_method_s_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="not this network's state dict"):
        INSIGHT.from_reference({"fc.weight": torch.zeros(2, 2)})


def test_how_many_tiles_are_worked_on_at_once_follows_from_the_device_unless_it_is_said() -> None:
    assert (small().tiles_at_once(), small(chunk_instances=5).tiles_at_once()) == (32, 5)
    on_gpu = SimpleNamespace(detection_score=SimpleNamespace(weight=SimpleNamespace(is_cuda=True)))
    for network, expected in ((small(), 256), (small(chunk_instances=5), 5)):
        network.__dict__["tiles"] = on_gpu
        assert network.tiles_at_once() == expected
