"""Where configs that should say the same say something else: a comparison key by key, with the differences that may be.

Configs are compared as they are written; nothing is built.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ORDER = "<order>"
ABSENT = "(absent)"
NAMESPACES = {"", "train", "validate"}
# Transforms that do the same for other bags, and are compared by that name.
SAME_PART = {
    "LoadTreed": "LoadBagd",
    "StreamSlided": "EmbedSlided",
    "DescendSlided": "EmbedSlided",
}
# What inference.json calls so is called `validate::...` in train.json.
STAGES = ("preprocessing", "dataset", "dataloader", "inferer", "postprocessing", "handlers", "evaluator")


@dataclass(frozen=True)
class Apart:
    """A difference that may be, and why.

    Attributes:
        columns: who says something else than the others: files of a bundle, or bundles. Among themselves they are
            compared all the same.
        keys: where, as in ``train::trainer::amp``; all that lies below is meant too. An item of a list goes by its
            ``_target_`` without module, or by its text.
        reason: why.
        scope: the bundles, or the files, in which it is so; empty for all.
    """

    columns: tuple[str, ...]
    keys: tuple[str, ...]
    reason: str
    scope: tuple[str, ...] = ()


class Partial(dict[str, Any]):
    """What a config says about some keys of a larger thing; it does not say that there are no others."""


def tree(config: Mapping[str, Any], *, inference: bool = False, merged: bool = True) -> Partial:
    """A config's dictionaries, with ``a::b`` and ``+a`` keys in place and a list's items by their names.

    Args:
        config: the JSON of one file.
        inference: give its stages the names that those of validation have in train.json.
        merged: what ``+`` adds is a part of something larger; else it is compared as a whole.
    """
    root = Partial()
    for name, value in config.items():
        *parents, last = name.removeprefix("+").split("::")
        if inference and [*parents, last][0] in STAGES:
            parents.insert(0, "validate")
        node: dict[str, Any] = root
        for parent in parents:
            node = node.setdefault(parent, Partial())
        said = _by_name(_as_validation(value) if inference else value)
        node[last] = Partial(said) if merged and name.startswith("+") else said
    return root


def _as_validation(value: Any) -> Any:
    return json.loads(re.sub(rf"@({'|'.join(STAGES)})\b", r"@validate::\1", json.dumps(value)))


def _by_name(value: Any) -> Any:
    """Dictionaries all the way down; a list of numbers or words is one value."""
    if isinstance(value, dict):
        return {name: _by_name(child) for name, child in value.items()}
    if not isinstance(value, list):
        return value
    if not any(isinstance(item, dict) or str(item).startswith(("@", "$")) for item in value):
        return tuple(value)
    items: dict[str, Any] = {}
    for item in value:
        name = str(item.get("_target_", "")).rsplit(".", 1)[-1] if isinstance(item, dict) else str(item)
        name = SAME_PART.get(name, name)
        while name in items:
            name += "'"
        items[name] = _by_name(item)
    return items | {ORDER: tuple(items)}


def drifts(columns: Mapping[str, Any], apart: Iterable[Apart] = ()) -> list[str]:
    """Every key in which columns differ that should not, and every allowed difference that there is not (any more).

    Args:
        columns: trees by name.
        apart: the differences that may be; what they say of columns that are not here is left aside.
    """
    comparison = _Comparison(
        {(key, column): entry for entry in apart for key in entry.keys for column in entry.columns if column in columns}
    )
    found = list(comparison.compare(dict(columns), ""))
    idle = [f"{column}: '{key}' does not differ" for key, column in comparison.allowed.keys() - comparison.seen]
    return found + sorted(idle)


class _Comparison:
    def __init__(self, allowed: Mapping[tuple[str, str], Apart]) -> None:
        self.allowed = allowed
        self.seen: set[tuple[str, str]] = set()

    def compare(self, columns: Mapping[str, Any], path: str) -> Iterator[str]:
        groups: dict[Apart | None, dict[str, Any]] = {}
        for column, node in columns.items():
            groups.setdefault(self.allowed.get((path, column)), {})[column] = node
        rest = groups.pop(None, {})
        for own in groups.values():
            if rest and _differ(own, rest, path):
                self.seen |= {(path, column) for column in own}
            yield from self._compare_alike(own, path)
        yield from self._compare_alike(rest, path)

    def _compare_alike(self, columns: Mapping[str, Any], path: str) -> Iterator[str]:
        if not all(isinstance(node, dict) for node in columns.values()):
            if len({repr(node) for node in columns.values()}) > 1:
                yield f"'{path}' differs: " + ", ".join(f"{name} {node!r:.60}" for name, node in columns.items())
            return
        if len(_orders(columns)) > 1:
            yield f"the items of '{path}' have another order: " + ", ".join(columns)
        for name in dict.fromkeys(name for node in columns.values() for name in node if name != ORDER):
            whole = any(name in node and not isinstance(node, Partial) for node in columns.values())
            children = {
                column: node.get(name, ABSENT)
                for column, node in columns.items()
                if name in node or (whole and not isinstance(node, Partial) and path not in NAMESPACES)
            }
            yield from self.compare(children, f"{path}::{name}" if path else name)


def _differ(some: Mapping[str, Any], others: Mapping[str, Any], path: str) -> bool:
    first = {"one": next(iter(some.values())), "other": next(iter(others.values()))}
    return any(_Comparison({})._compare_alike(first, path))


def _orders(columns: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """The orders in which columns have the items that they all have."""
    common = set.intersection(*(set(node) for node in columns.values())) if columns else set()
    return {tuple(name for name in node[ORDER] if name in common) for node in columns.values() if ORDER in node}
