"""The examples in the docstrings are true, and what a newcomer looks up first has one."""

import doctest
import importlib
import inspect

import pytest
import torch

from tests.conftest import ROOT

PACKAGE = ROOT / "monai_mil"
FINDER = doctest.DocTestFinder(exclude_empty=True)


def modules_with_examples() -> list[str]:
    paths = [path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text()]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)


@pytest.mark.parametrize("module", modules_with_examples())
def test_examples_are_true(module, tmp_path, capsys):
    """Each starts with nothing but ``folder``, an empty folder of its own."""
    for number, example in enumerate(FINDER.find(importlib.import_module(module))):
        if not example.examples:
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        example.globs = {"__name__": "__main__", "folder": folder}
        torch.manual_seed(0)
        failed = doctest.DocTestRunner(verbose=False).run(example).failed
        assert not failed, capsys.readouterr().out


@pytest.mark.parametrize("room", ["networks", "losses", "metrics"])
def test_every_network_loss_and_metric_function_has_an_example(room):
    face = importlib.import_module(f"monai_mil.{room}")
    public = {name: getattr(face, name) for name in face.__all__}
    wanted = [
        name
        for name, value in public.items()
        if inspect.isfunction(value) or (inspect.isclass(value) and room != "metrics")
    ]
    without = [name for name in wanted if ">>> " not in (public[name].__doc__ or "")]
    assert not without, f"monai_mil.{room}: no example of {without}"
