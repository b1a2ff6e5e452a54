"""The methods of a bundle as data: ``configs/methods/<name>.json`` says all there is to say of one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch import nn

from monai_mil.errors import SettingsError
from monai_mil.losses import MILLoss
from monai_mil.shipped import bundle_configs
from monai_mil.training.recipe import Recipe

_VARIED = {"network", "loss", "transforms", "handlers"}
_VARIANTS = {"published": _VARIED, "survival": _VARIED, "own": {*_VARIED, "recipe"}}
_TOLD = {"title", "paper", "attention"}
_BAG_LOSS_ALONE = {"terms": {"bag": "@bag_loss"}}


def read_method(path: str | Path) -> dict[str, Any]:
    """The content of a method's file, its parts by name; nothing of it is built.

    Args:
        path: ``configs/methods/<name>.json``. It holds ``title``, ``paper`` and ``attention``, in words for the docs,
            the ``network`` as configs say it, and, where it has some, ``loss`` (terms and weights of a ``MILLoss``),
            ``transforms`` (behind the loading of a bag) and ``handlers`` (of the trainer); then what differs from these
            in a variant: ``published``, the widths of the paper, ``survival``, for follow-up in place of classes,
            ``own``, with its authors' ``recipe``.

    Raises:
        SettingsError: it cannot be read, or has a part that nobody reads, or lacks one.

    Examples:
        >>> from monai_mil.training import read_method
        >>> _ = (folder / "mean.json").write_text('{"title": "mean", "paper": "", "attention": "no", "network": {}}')
        >>> read_method(folder / "mean.json")["title"]
        'mean'
    """
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"method '{path}' cannot be read: {error}") from error
    unknown = set(said) - _TOLD - _VARIED - set(_VARIANTS)
    unknown |= {f"{name}::{part}" for name, known in _VARIANTS.items() for part in set(said.get(name, {})) - known}
    if unknown:
        raise SettingsError(f"method '{path}' has parts that nobody reads: {', '.join(sorted(unknown))}")
    if missing := {*_TOLD, "network"} - set(said):
        raise SettingsError(f"method '{path}' lacks {', '.join(sorted(missing))}")
    return said


class Methods(Mapping[str, "partial[nn.Module]"]):
    """The methods of a bundle by name, each of which builds its network as it stands in its file.

    Args:
        root: the bundle's folder; where it is none, see :func:`monai_mil.shipped.bundle_configs`.
        bundle: the bundle's name.
        given: what the files may refer to, such as ``@in_channels``.

    Raises:
        SettingsError: the bundle has no ``configs/methods``.
    """

    setting = "changes::network::"
    """What stands before an argument of the chosen network where it is typed."""

    def __init__(self, root: str | Path, bundle: str, given: Mapping[str, Any]) -> None:
        self.folder = bundle_configs(root, bundle) / "methods"
        self.given = dict(given)
        if not self.folder.is_dir():
            raise SettingsError(f"no methods in '{self.folder}': say where the bundle is with --bundle_root")

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in self.folder.glob("*.json")))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __getitem__(self, name: str) -> partial[nn.Module]:
        return self.choose(name).build_network

    def choose(
        self,
        name: str,
        task: Literal["classes", "survival"] = "classes",
        widths: Literal["small", "published"] = "small",
        recipe: Literal["shared", "own"] = "shared",
        shared: Recipe | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Method:
        """The method of a name, in the variant of choice.

        Args:
            name: of its file.
            task: what a bag is labelled with.
            widths: of the network.
            recipe: whose, that which all methods share or the authors' own.
            shared: the former.
            changes: to its parts, laid over them: dictionaries are merged, all else is replaced.

        Raises:
            SettingsError: there is no such method or variant.
        """
        path = self.folder / f"{name}.json"
        if not path.is_file():
            raise SettingsError(f"no method '{name}' in '{self.folder}'; there are {', '.join(self)}")
        said = read_method(path)
        for variant, standard in ((widths, "small"), (task, "classes"), (recipe, "shared")):
            if variant not in (standard, *_VARIANTS):
                raise SettingsError(f"methods have no variant '{variant}'; choose '{standard}' or another of the docs")
            if variant == "own" and "own" not in said:
                raise SettingsError(f"method '{path}' has no recipe of its own; take --recipe shared")
            said = _laid_over(said, said.get(variant, {}))
        if said.get("loss") is None:
            said["loss"] = _BAG_LOSS_ALONE
        said = _laid_over(said, changes or {})
        own = Recipe(**said["recipe"]) if "recipe" in said else shared
        if own is not None and task == "survival":
            own = replace(own, select="metric")
        return Method(said, self.given, own)


class Method:
    """One method as a training or prediction wants it.

    Args:
        said: the parts of its file, see :func:`read_method`.
        given: what they may refer to.
        recipe: how it is trained; None for a prediction.
    """

    def __init__(self, said: Mapping[str, Any], given: Mapping[str, Any], recipe: Recipe | None) -> None:
        self.said = said
        self.given = given
        self._recipe = recipe

    @property
    def recipe(self) -> Recipe:
        """How it is trained.

        Raises:
            SettingsError: it was chosen for a prediction.
        """
        if self._recipe is None:
            raise SettingsError("a method that was chosen without a recipe cannot be trained")
        return self._recipe

    @property
    def build_network(self) -> partial[nn.Module]:
        """Builds the network, with all its arguments."""
        return self._built({**self.said["network"], "_mode_": "callable"})

    def network(self) -> nn.Module:
        """The network, made anew."""
        return self.build_network()

    def loss(self, bag_loss: nn.Module) -> MILLoss:
        """The loss of the network's whole output.

        Args:
            bag_loss: what compares a bag's answer with its label; the file calls it ``@bag_loss``. A term that is null
                in a variant is left out of it.
        """
        loss = self._built(self.said["loss"], bag_loss=bag_loss)
        terms = {name: term for name, term in loss["terms"].items() if term is not None}
        return MILLoss(terms, {name: weight for name, weight in loss.get("weights", {}).items() if name in terms})

    def transforms(self) -> Compose:
        """What is done with a bag behind its loading; nothing for most methods."""
        return Compose(self._built(self.said.get("transforms", [])))

    def handlers(self, network: nn.Module, dataset: Any) -> list[Any]:
        """What watches the trainer; nothing for most methods.

        Args:
            network: the one that is trained; the file calls it ``@network``.
            dataset: what it is trained on, ``@dataset``.
        """
        return self._built(self.said.get("handlers", []), network=network, dataset=dataset)

    def _built(self, said: Any, **more: Any) -> Any:
        return ConfigParser({**self.given, **more, "built": said}).get_parsed_content("built")


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Dictionaries merged all the way down, the second's values where both have one."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged
