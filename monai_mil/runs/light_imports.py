"""A lighter start: what MONAI and ignite import at once and a prediction never uses is imported when it is used."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from monai_mil.runs.quiet_imports import quiet_imports

_LATER = {
    "cucim": "cucim-cu12",
    "cupy": "cupy-cuda12x",
    "cupyx": "cupy-cuda12x",
    "itk": "itk-core",
    "matplotlib": "matplotlib",
    "nibabel": "nibabel",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "pandas": "pandas",
    "pydicom": "pydicom",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "torchvision": "torchvision",
}
_SCIPY_LATER = ("scipy.signal", "scipy.stats")
_GPU_READER = "nvidia.nvimgcodec"
_MODULE = "monai.utils.module"


def import_monai_lightly() -> None:
    """Import MONAI and ignite, but of the optional packages behind them only what is used.

    Importing MONAI costs five seconds of a CPU, half of it for packages that it takes through its own
    ``optional_import`` in case somebody needs them. Here that function gives a stand-in, which imports the package at
    first use, so that everything works as ever; the same holds for ignite's ``ZeroRedundancyOptimizer``. Nothing
    happens where MONAI is imported already.
    """
    if "monai" in sys.modules:
        return
    with _stand_ins("torch.distributed.optim"):
        importlib.import_module("ignite.handlers.checkpoint")
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        # MONAI's notebook tools import matplotlib outright
        with quiet_imports(), _stand_ins("matplotlib", "matplotlib.pyplot"):
            importlib.import_module("monai.bundle")
    finally:
        sys.meta_path.remove(finder)


@contextmanager
def _stand_ins(*names: str) -> Iterator[None]:
    """Meanwhile modules of these names whose every name waits for the real one, unless these are imported already."""
    modules = {name: _StandIn(name) for name in names if name not in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in modules.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(lambda: _named(self.__name__, name))


def _named(module: str, name: str) -> Any:
    """The module ``module.name``, or what ``module`` calls so."""
    try:
        return importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), name)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the one module of MONAI that is changed while it is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    """Loads the module as ever, then makes its ``optional_import`` wait."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        module.optional_import = _waiting(module.optional_import)  # type: ignore[attr-defined]


def _waiting(optional_import: Callable[..., tuple[Any, bool]]) -> Callable[..., tuple[Any, bool]]:
    def imported(module: str, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
        package = module.partition(".")[0]
        if module.startswith(_GPU_READER):  # where it is there MONAI takes it apart at once, and talks without a GPU
            import torch

            if not torch.cuda.is_available():
                return _Later(lambda: optional_import(module, *args, **kwargs)[0]), False
        waits = package in _LATER or module in _SCIPY_LATER
        if not waits or (package in sys.modules and package != "scipy") or not _is_installed(package):
            return optional_import(module, *args, **kwargs)
        return _Later(lambda: optional_import(module, *args, **kwargs)[0]), True

    return imported


def _is_installed(package: str) -> bool:
    if importlib.util.find_spec(package) is None:
        return False
    try:
        version(_LATER.get(package, package))
    except PackageNotFoundError:  # a distribution of another name, or none: MONAI looks itself
        return False
    return True


class _Later:
    """Stands for a package, or for something in it, until that is used."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.__dict__["_load"] = load

    def _real(self) -> Any:
        if "_found" not in self.__dict__:
            self.__dict__["_found"] = self.__dict__["_load"]()
        return self.__dict__["_found"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real(), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._real())
