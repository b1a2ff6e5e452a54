"""Weights that do not fit a network: which settings would, found by making networks of other sizes."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_mil.errors import SettingsError
from monai_mil.networks import MILNetwork
from monai_mil.training.distributed import unwrap

Shapes = dict[str, tuple[int, ...]]
_MOST_NAMED = 3
_SMALL = range(9)


def require_fit(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    path: str | Path,
    settings: Mapping[str, Any] | None = None,
    methods: Mapping[str, Callable[[], nn.Module]] | None = None,
    *,
    any_classes: bool = False,
) -> list[str]:
    """Make sure that weights are those of a network as it is configured.

    Args:
        network: a wrapper for several processes is taken off.
        weights: a state dict.
        path: the file they are from.
        settings: the run's ``model_settings``; what they name is a key of the config.
        methods: the config's, by name, each of which builds a network.
        any_classes: the weights may be for another number of classes.

    Returns:
        Names of the tensors that are of another shape for that reason: the heads.

    Raises:
        SettingsError: names or shapes differ; one line says which settings would fit, or where the two differ.
    """
    network, theirs = unwrap(network), shapes_of(weights)
    mine = shapes_of(network.state_dict())
    expected = _with_classes_of(network, theirs) if any_classes else mine
    if theirs != expected:
        wanted = _fitting_settings(network, theirs, settings or {}, methods or {}, any_classes)
        advice = f"; they would with {wanted}" if wanted else "; they are of another network"
        told = f"weights '{path}' do not fit the configured {type(network).__name__}{advice}"
        raise SettingsError(f"{told} ({_differences(mine, theirs)})")
    return [name for name in mine if mine[name] != expected[name]]


def shapes_of(weights: Mapping[str, Tensor]) -> Shapes:
    """The shape of every tensor by its name."""
    return {name: tuple(value.shape) for name, value in weights.items()}


def _differences(mine: Shapes, theirs: Shapes) -> str:
    """Where the tensors of a network and those of a file differ, a few of each kind by name."""
    both = [name for name in mine if name in theirs and theirs[name] != mine[name]]
    kinds = {
        "missing": [name for name in mine if name not in theirs],
        "unexpected": [name for name in theirs if name not in mine],
        "of another shape": [f"{name} {list(theirs[name])} for {list(mine[name])}" for name in both],
    }
    return "; ".join(f"{kind}: {_few(names)}" for kind, names in kinds.items() if names)


def _with_classes_of(network: nn.Module, theirs: Shapes) -> Shapes:
    """The network's tensors if it had as many classes as the file's."""
    mine = shapes_of(network.state_dict())
    for prefix, module in network.named_modules():
        if isinstance(module, MILNetwork) and "num_classes" in module.arguments():
            above = f"{prefix}." if prefix else ""
            below = {name.removeprefix(above): shape for name, shape in theirs.items() if name.startswith(above)}
            count = _class_count(module, below)
            own = _shapes(type(module), module.arguments() | {"num_classes": count}) or {}
            mine |= {above + name: shape for name, shape in own.items() if above + name in mine}
    return mine


def _class_count(network: MILNetwork, theirs: Shapes) -> int:
    """What most axes of a file's tensors that depend on the number of classes say of it."""
    count, mine = network.num_classes, shapes_of(network.state_dict())
    more = _shapes(type(network), network.arguments() | {"num_classes": 2 * count}) or {}
    said = Counter(
        other[axis] * count // length
        for name, shape in mine.items()
        for axis, (length, other) in enumerate((length, theirs.get(name, ())) for length in shape)
        if axis < len(other) and more.get(name, shape)[axis] == 2 * length
    )
    return max(said.most_common(1)[0][0], 1) if said else count


def _fitting_settings(
    network: nn.Module, theirs: Shapes, settings: Mapping[str, Any], methods: Mapping[str, Any], any_classes: bool
) -> str:
    """The settings, as they are typed, with which the network would be that of the file; empty if none are found."""
    for more in (False, True):
        found = []
        for method, kind, arguments in _candidates(network, settings.get("method"), methods):
            changes = _changes(kind, arguments, theirs, _alternatives(arguments) if more else [{}])
            if changes is not None:
                typed = [f"--method {method}"] if method != settings.get("method") else []
                place = getattr(methods, "setting", f"methods::{method}::" if method else "network_def::")
                left_out = ("num_classes",) if any_classes else ()
                found.append(
                    typed + [_typed(*each, place, settings) for each in changes.items() if each[0] not in left_out]
                )
        if found:
            fewest = min(map(_rank, found))
            return " or ".join(" and ".join(typed) for typed in found if _rank(typed) == fewest)
    return ""


def _rank(typed: list[str]) -> tuple[int, bool]:
    """Few settings before many, and another method as it is before a changed one."""
    return len(typed), not any(each.startswith("--method ") for each in typed)


def _candidates(
    network: nn.Module, method: str | None, methods: Mapping[str, Any]
) -> Iterator[tuple[str | None, Callable[..., nn.Module], dict[str, Any]]]:
    if isinstance(network, MILNetwork):
        yield method, type(network), network.arguments()
    for name, build in methods.items():
        if name != method and isinstance(build, partial):
            yield name, build.func, dict(build.keywords)


def _typed(name: str, value: Any, place: str, settings: Mapping[str, Any]) -> str:
    if name == "num_classes":
        return f"{value} output{'s' if value != 1 else ''} (--class_names)"
    said = f'"{value}"' if isinstance(value, list | tuple) else value
    return f"--{'' if name in settings else place}{name} {said}"


def _changes(
    kind: Callable[..., nn.Module], arguments: dict[str, Any], theirs: Shapes, alternatives: Iterable[dict[str, Any]]
) -> dict[str, Any] | None:
    """Other values of a network's arguments with which its tensors have these names and shapes, as few as will do."""
    for change in alternatives:
        tried = arguments | change
        mine = _shapes(kind, tried)
        if mine is None or mine.keys() != theirs.keys():
            continue
        sizes = _sizes(kind, tried, mine, theirs)
        if _shapes(kind, tried | sizes) == theirs:
            return change | sizes
    return None


def _alternatives(arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every change of one argument that chooses among a few."""
    for name, value in arguments.items():
        few = (not value,) if isinstance(value, bool) else _SMALL if isinstance(value, int) else ()
        yield from ({name: other} for other in few if other != value)


def _sizes(kind: Callable[..., nn.Module], arguments: dict[str, Any], mine: Shapes, theirs: Shapes) -> dict[str, Any]:
    """The sizes that follow from the axes whose length depends on a single one, where they are others."""
    owners: dict[tuple[str, int], list[tuple[Any, float]]] = {}
    for place, value in _numbers(arguments):
        more = _shapes(kind, _with(arguments, {place: 2 * value})) or {}
        for name, shape in mine.items():
            for axis, (less, length) in enumerate(zip(shape, more.get(name, shape), strict=False)):
                if length != less:
                    owners.setdefault((name, axis), []).append((place, (length - less) / value))
    values = dict(_numbers(arguments))
    found = {}
    for (name, axis), owner in owners.items():
        if len(owner) == 1 and len(theirs[name]) == len(mine[name]):
            (place, slope), step = owner[0], theirs[name][axis] - mine[name][axis]
            if step:
                found[place] = round(values[place] + step / slope)
    changed = _with(arguments, found)
    return {name: value for name, value in changed.items() if value != arguments[name]}


def _numbers(arguments: Mapping[str, Any]) -> Iterator[tuple[tuple[str, int | None], int]]:
    """Every whole number above 0 among the arguments, those in lists too, with its place."""
    for name, value in arguments.items():
        items = enumerate(value) if isinstance(value, list | tuple) else [(None, value)]
        yield from (((name, index), item) for index, item in items if type(item) is int and item > 0)


def _with(arguments: Mapping[str, Any], values: Mapping[tuple[str, int | None], int]) -> dict[str, Any]:
    changed = dict(arguments)
    for (name, index), value in values.items():
        if index is None:
            changed[name] = value
        else:
            changed[name] = [value if place == index else item for place, item in enumerate(changed[name])]
    return changed


def _shapes(kind: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> Shapes | None:
    """The tensors of a network made with these arguments; None where there is no such network."""
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            return shapes_of(kind(**arguments).state_dict())
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, IndexError, KeyError, AssertionError):
        return None


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(itertools.islice(names, _MOST_NAMED)) + more
