"""Configs cannot drift: what several of them say is the same in all, but for the differences that have a reason."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import apart
from tests.bundles.common import BUNDLES, NAMES
from tests.bundles.drift import Apart, drifts, tree

Configs = Mapping[str, Mapping[str, Any]]


@cache
def text(path: Path) -> str:
    return path.read_text()


def configs(name: str) -> dict[str, Any]:
    """The bundle's configs by name, without metadata and the paper's numbers, which are to differ, and ``deploy.json``,
    which is no config of MONAI's."""
    files = sorted((BUNDLES / name / "configs").glob("*.json"), key=lambda path: (path.stem != "train", path.stem))
    return {path.stem: json.loads(text(path)) for path in files if path.stem not in ("metadata", "paper", "deploy")}


def within(entries: list[Apart], scope: str) -> list[Apart]:
    return [entry for entry in entries if not entry.scope or scope in entry.scope]


def drifts_of_files(name: str, files: Configs) -> list[str]:
    columns = {
        file: tree(config, inference=file.startswith("inference"))
        for file, config in files.items()
        if file != "train_monailabel"  # it says nothing but what differs: scans and masks in place of bags and a table
    }
    return drifts(columns, within(apart.FILES, name))


def drifts_of_bundles(file: str, bundles: Configs) -> list[str]:
    form = {"inference": file.startswith("inference"), "merged": False}
    return drifts({name: tree(config, **form) for name, config in bundles.items()}, within(apart.BUNDLES, file))


def drifts_of_steps(place: str, config: Mapping[str, Any]) -> list[str]:
    steps = {step: _step(tree(config)[step], step) for step in ("train", "validate")}
    return drifts(steps, within(apart.STEPS, place))


def _step(node: Any, step: str) -> Any:
    """What a step says, with its references to itself as those of the other are."""
    if isinstance(node, dict):
        return type(node)((name, _step(child, step)) for name, child in node.items())
    return re.sub(rf"@{step}::", "@", node) if isinstance(node, str) else node


def drifts_of_anchor(asmil: Mapping[str, Any], overlay: Mapping[str, Any]) -> list[str]:
    return drifts({"pathology_asmil": tree(asmil), "mil_baselines": tree(overlay)}, apart.ANCHOR)


def all_drifts(everything: Mapping[str, Configs]) -> list[str]:
    """Every drift in the configs of all bundles, with its place."""
    found = []
    for name, files in everything.items():
        found += [f"{name}: {drift}" for drift in drifts_of_files(name, files)]
        for file, config in files.items():
            if {"train", "validate"} <= tree(config).keys():
                place = f"{name}/{file}"
                found += [f"{place}: {drift}" for drift in drifts_of_steps(place, config)]
    for file in sorted({file for files in everything.values() for file in files}):
        bundles = {name: files[file] for name, files in everything.items() if file in files}
        found += [f"{file}: {drift}" for drift in drifts_of_bundles(file, bundles)]
    anchors = everything["pathology_asmil"]["train"], everything["mil_baselines"]["anchor"]
    return found + [f"anchor: {drift}" for drift in drifts_of_anchor(*anchors)]


@pytest.fixture
def everything() -> dict[str, dict[str, Any]]:
    return {name: configs(name) for name in NAMES}


def test_what_several_configs_say_is_the_same_in_all(everything):
    assert all_drifts(everything) == []


def changed(config: Any, place: str, value: Any) -> None:
    """Set the value at ``a/b/0``."""
    *parents, last = (int(part) if part.isdigit() else part for part in place.split("/"))
    for part in parents:
        config = config[part]
    assert config[last] != value
    config[last] = value


@pytest.mark.parametrize(
    ("name", "file", "place", "value"),
    [
        ("mil_baselines", "inference", "methods/given/in_channels", 64),
        ("mil_baselines", "train", "method_transforms", None),
        ("mil_baselines", "inference", "preprocessing/transforms/0/width", None),
        ("mil_baselines", "survival", "task", "classes"),
        ("mil_baselines", "anchor", "anchor_momentum", 0.99),
        ("pathology_asmil", "inference", "tokens", 16),
        ("pathology_asmil", "evaluate", "validate::handlers/0/load_dict/model", "@network_def"),
        ("pathology_asmil", "inference_survival", "prediction_saver/edges", None),
        ("pathology_hagmil", "train", "network_def/dropout", 0.0),
        ("pathology_hagmil", "inference_slides", "preprocessing/transforms/0/min_tissue", 0.5),
        ("pathology_insight", "inference", "network_def/alpha", 4.0),
        ("pathology_insight", "calibrate", "validate::handlers/0/map_location", "cpu"),
        ("ct_insight", "train", "validate/preprocessing/transforms/0/depth", 64),
        ("ct_insight", "inference", "slice_saver/window", "soft"),
        ("ct_normal_guidance", "inference", "class_names", ["negative", "tumor"]),
        ("ct_normal_guidance", "slice_supervised", "train::preprocessing/transforms/0/preset", None),
        ("ct_normal_guidance", "train", "train/handlers/0/seed", 1),
        ("ct_normal_guidance", "multi_gpu_train", "validate::sampler/even_divisible", True),
        ("pathology_insight", "train", "checkpointer/resume", False),
    ],
)
def test_what_is_changed_in_one_config_alone_is_found(name, file, place, value, everything):
    changed(everything[name][file], place, value)
    assert all_drifts(everything)


@pytest.mark.parametrize(
    ("name", "file", "place", "key"),
    [
        ("pathology_hagmil", "inference", "", "network_def"),
        ("pathology_asmil", "train", "train/handlers", 1),
        ("ct_insight", "multi_gpu_train", "initialize", 2),
        ("mil_baselines", "train", "train/trainer", "amp"),
    ],
)
def test_what_is_taken_out_of_one_config_alone_is_found(name, file, place, key, everything):
    config = everything[name][file]
    for part in filter(None, place.split("/")):
        config = config[part]
    del config[key]
    assert all_drifts(everything)


def test_another_order_of_the_handlers_is_found(everything):
    everything["pathology_insight"]["train"]["train"]["handlers"].reverse()
    assert any("another order" in drift for drift in all_drifts(everything))


def test_a_difference_that_is_no_more_has_to_leave_the_list(everything):
    everything["pathology_hagmil"]["train"]["amp"] = "$torch.cuda.is_available()"
    assert "train: pathology_hagmil: 'amp' does not differ" in all_drifts(everything)


def test_the_anchor_is_attached_in_one_way(everything):
    (handler,) = everything["mil_baselines"]["anchor"]["+train::handlers"]
    assert handler in everything["pathology_asmil"]["train"]["train"]["handlers"]


def test_columns_that_stand_apart_together_are_compared_with_each_other():
    together = Apart(("b", "c"), ("key",), "an example")
    columns = {name: tree({"key": value}) for name, value in {"a": 1, "b": 2, "c": 3}.items()}
    assert drifts(columns, [together]) == ["'key' differs: b 2, c 3"]


@pytest.mark.parametrize("name", NAMES)
def test_several_processes_wrap_the_network_of_one(name, everything):
    assert everything[name]["multi_gpu_train"]["network"]["module"] == everything[name]["train"]["network"]


@pytest.mark.parametrize("name", NAMES)
def test_the_metadata_know_the_width_and_the_names_of_the_config(name, everything):
    metadata = json.loads(text(BUNDLES / name / "configs" / "metadata.json"))
    shipped = json.loads(text(BUNDLES / name / "models" / "model.json"))["settings"]
    assert metadata["network_data_format"]["inputs"]["image"]["num_channels"] == shipped["in_channels"]
    labels = ", ".join(f"{index} is {label}" for index, label in enumerate(shipped["class_names"]))
    assert labels in metadata["label_classes"]
    for key in ("in_channels", "class_names"):  # the same for weights without a model.json
        assert everything[name]["inference"][key] == f"$@trained.get('{key}', {shipped[key]!r})"


@pytest.mark.parametrize("key", ["schema", "monai_version", "pytorch_version", "numpy_version", "authors", "copyright"])
def test_all_metadata_say_the_same_of_what_they_share(key):
    assert len({json.loads(text(BUNDLES / name / "configs" / "metadata.json"))[key] for name in NAMES}) == 1


def test_a_package_has_one_version_in_all_bundles():
    versions: dict[str, set[str]] = {}
    for name in NAMES:
        metadata = json.loads(text(BUNDLES / name / "configs" / "metadata.json"))
        for package, version in metadata["required_packages_version"].items():
            versions.setdefault(package, set()).add(version)
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}


def test_all_bundles_log_alike():
    assert len({text(BUNDLES / name / "configs" / "logging.conf") for name in NAMES}) == 1
