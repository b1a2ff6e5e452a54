"""The table of keys: what networks give and what the package reads stands in it, and padding follows it."""

from __future__ import annotations

import ast
import math

import pytest
import torch
from torch import Tensor, nn

from monai_mil.networks import ASMIL, HAGMIL, INSIGHT, KEYS, instance_axis
from monai_mil.networks.blocks import restore_padding
from tests.conftest import ROOT
from tests.networks.test_contract import NETWORKS, bag, build

N, REAL = 10, 5
DICTS = {"output", "item", "batch", "batchdata", "data", "unpacked", "done", "loaded", "labelled", "sampled"}
"""What functions of this package call an engine's dictionaries."""


def padded_mask() -> Tensor:
    """Bags of 5 real instances among 10, in front and in between."""
    mask = torch.zeros(2, N, dtype=torch.bool)
    mask[0, :REAL] = True
    mask[1, 1 : 2 * REAL : 2] = True
    return mask


def check_fits(key: str, value: Tensor, sizes: dict[str, int]) -> None:
    """Fail unless the key is listed and the value of a batch has its shape."""
    assert key in KEYS, f"'{key}' is not listed in monai_mil.networks.contract.KEYS"
    axes = KEYS[key].shape.split()
    fixed = axes[: axes.index("...")] if "..." in axes else axes
    assert value.dim() == len(axes) if fixed == axes else value.dim() >= len(fixed), f"{key}: {list(value.shape)}"
    for name, size in zip(fixed, value.shape, strict=False):
        assert size == sizes.get(name, size), f"{key} {list(value.shape)} is not [{KEYS[key].shape}]"
    if instance_axis(key) is None:
        assert sizes["n"] not in value.shape[1:], f"{key} {list(value.shape)} seems to have a value for every instance"


def check_padding(key: str, value: Tensor, mask: Tensor) -> None:
    """Fail unless a value for every instance is what the table says on padding."""
    axis = instance_axis(key)
    if axis is not None and key != "instance_logits":
        on_padding = value.movedim(axis + 1, 1)[~mask]
        assert (on_padding == KEYS[key].padding).all(), key


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "evaluation"])
@pytest.mark.parametrize("network_class", NETWORKS, ids=lambda network: network.__name__)
def test_a_network_gives_listed_keys_of_listed_shapes(network_class: type[nn.Module], gradients: bool) -> None:
    network, instance = build(network_class)
    network.train(gradients)
    mask = padded_mask()
    with torch.set_grad_enabled(gradients):
        output = network(bag(instance, N, batch=2), mask, return_dict=True)
    for key, value in output.items():
        check_fits(key, value, {"b": 2, "c": network.num_classes, "n": N})
        check_padding(key, value, mask)


def test_keys_of_options_are_listed_too() -> None:
    torch.manual_seed(0)
    mask = padded_mask()
    sizes = {"b": 2, "c": 3, "n": N}
    levels = HAGMIL(4, 3, 2, 1, 1, hidden_dims=(16, 24), instance_channels=4, attention_dim=4, sampled=2)
    insight = INSIGHT(4, 3, grid=(3, 4), reduced=8, widths=(8, 6, 6))
    tokens = mask[:, :, None, None].expand(-1, -1, 3, 4)
    outputs = [
        levels(bag((4,), N, batch=2), mask, return_dict=True),
        levels.eval()(bag((4,), N, batch=2), mask, return_dict=True),
        ASMIL(4, 3, tokens=2, heads=2, token_logits=True)(bag((4,), N, batch=2), mask, return_dict=True),
        insight(bag((4, 3, 4), N, batch=2), tokens, return_dict=True),
    ]
    seen = set()
    for output in outputs:
        for key, value in output.items():
            check_fits(key, value, sizes)
            check_padding(key, value, mask)
        seen |= output.keys()
    assert {"level_top_instance_logits", "token_logits", "token_mask"} <= seen


def test_every_key_that_the_package_reads_is_listed() -> None:
    read = {key for path in sorted((ROOT / "monai_mil").rglob("*.py")) for key in keys_read(path.read_text())}
    assert {"logits", "coords", "risk"} <= read, "the test does not find the places any more"
    assert read <= KEYS.keys(), f"list {sorted(read - KEYS.keys())} in monai_mil.networks.contract.KEYS"


def keys_read(source: str) -> set[str]:
    """The keys in ``output["key"]``, ``item.get("key")`` and ``"key" in batch``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        owner, key = None, None
        if isinstance(node, ast.Subscript):
            owner, key = node.value, node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            if node.func.attr in ("get", "setdefault", "pop"):
                owner, key = node.func.value, node.args[0]
        elif isinstance(node, ast.Compare):
            owner, key = node.comparators[0], node.left
        if isinstance(owner, ast.Name) and owner.id in DICTS and isinstance(key, ast.Constant):
            found.add(key.value)
    return {key for key in found if isinstance(key, str)}


def test_the_axis_of_a_case_is_that_of_the_batch_without_the_first() -> None:
    axes = {"attention": 1, "coords": 0, "image": 1, "heatmap": 1, "mask": 0, "logits": None, "slide_id": None}
    assert {key: instance_axis(key) for key in axes} == axes
    with pytest.raises(KeyError, match=r"no 'salience' among the keys .* list it in KEYS"):
        instance_axis("salience")


@pytest.mark.parametrize("scripted", [False, True], ids=["python", "script"])
def test_padding_comes_back_where_the_table_says(scripted: bool) -> None:
    restore = torch.jit.script(restore_padding) if scripted else restore_padding
    keys = build(HAGMIL)[0].listed_keys
    mask = padded_mask()[1]
    real = {
        "attention_logits": torch.rand(1, 2, REAL),
        "coords": torch.ones(1, REAL, 2, dtype=torch.int64),
        "instance_labels": torch.ones(1, REAL, dtype=torch.int64),
        "heatmap": torch.rand(1, 3, REAL, 2, 2),
        "bag": torch.rand(1, REAL),
    }
    padded = restore(real, mask, keys)
    assert padded["bag"].shape == (1, REAL)
    for key in real.keys() - {"bag"}:
        columns = padded[key].movedim(instance_axis(key) + 1, -1)
        torch.testing.assert_close(columns[..., mask], real[key].movedim(instance_axis(key) + 1, -1))
        assert (columns[..., ~mask] == KEYS[key].padding).all()
    assert KEYS["attention_logits"].padding == -math.inf
    with pytest.raises((ValueError, torch.jit.Error), match=r"'salience'.*list the key in KEYS"):
        restore({"salience": torch.rand(1, 3, REAL)}, mask, keys)
