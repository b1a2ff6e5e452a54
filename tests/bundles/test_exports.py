"""Exported programs in place of the network, and exports of probabilities: the same predictions."""

import shutil

import numpy as np
import pytest
import torch
from monai.bundle import ckpt_export
from monai.data import load_net_with_metadata

from monai_mil.runs import BundleRun, find_bundle
from tests.bundles.common import BUNDLES, EXAMPLES, NAMES, bag_shape, export_arguments, network, rows

pytestmark = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def bags_of(cohort_of, tmp_path_factory):
    """``bags_of(bundle)`` is a folder of three bags of the bundle's example and the shipped weights without a card."""

    def folder(name):
        place = tmp_path_factory.mktemp(name)
        shutil.copy(BUNDLES / name / "models" / "model.pt", place)
        source = cohort_of(name) / EXAMPLES[name].bag_folder
        few = sorted(path.name for path in source.iterdir() if path.is_file())[:3]
        for path in (cohort_of(name) / "bags").rglob("*"):
            if path.name in few:
                copy = place / path.relative_to(cohort_of(name))
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, copy)
        return place

    return folder


def run_of(name, bags, out, **settings):
    """The bundle's inference.json on the bags."""
    own = {
        "dataset_dir": str(bags),
        "output_dir": str(out),
        "ckpt_path": str(bags / "model.pt"),
        "encoder": "synthetic",
    }
    return BundleRun(find_bundle(name), ("inference",), {**own, **EXAMPLES[name].bags, **settings})


def predictions(name, bags, out, **settings):
    """Columns of probabilities in ``predictions.csv`` as one array."""
    run_of(name, bags, out, **settings).start()
    columns = [column for column in rows(out / "predictions.csv")[0] if column.startswith("prob")]
    return np.array([[float(row[column]) for column in columns] for row in rows(out / "predictions.csv")])


def files_below(folder):
    return {path.relative_to(folder) for path in folder.rglob("*.*")}


def as_program(name, path):
    """The shipped network's whole output as a program of ``torch.export``."""
    shape = bag_shape(name, 5)
    image = torch.randn(*shape[:3], *EXAMPLES[name].bags.get("grid", shape[3:]))
    size = {2: torch.export.Dim("n", min=2, max=100_000)}
    program = torch.export.export(
        network(name), (image,), {"return_dict": True}, dynamic_shapes={"image": size, "return_dict": None}
    )
    torch.export.save(program, path)
    return f"$torch.export.load('{path}')"


def test_programs_answer_as_the_network_does(name, bags_of, torchscript_of, tmp_path):
    bags = bags_of(name)
    eager = predictions(name, bags, tmp_path / "eager")
    ways = {"ts": f"$torch.jit.load('{torchscript_of(name)}')"}
    if name != "pathology_hagmil":  # whose export takes half a minute; tests/training/test_exported.py has a small one
        ways["pt2"] = as_program(name, tmp_path / "model.pt2")
    for way, network_def in ways.items():
        found = predictions(name, bags, tmp_path / way, network_def=network_def)
        np.testing.assert_allclose(found, eager, rtol=0, atol=1e-6)
        assert files_below(tmp_path / way) == files_below(tmp_path / "eager")

    is_logits = {"_meta_#network_data_format#outputs#pred#is_logits": False}
    ckpt_export(**export_arguments(name, tmp_path / "probability.ts") | {"net_id": "probability_def"}, **is_logits)
    program, said, _ = load_net_with_metadata(tmp_path / "probability.ts")
    assert said["network_data_format"]["outputs"]["pred"]["is_logits"] is False
    workflow = run_of(name, bags, tmp_path).workflow()
    workflow.initialize()
    images = [item["image"][None].as_subclass(torch.Tensor) for item in workflow.parser.get_parsed_content("dataset")]
    found = np.concatenate([program(image).detach().numpy() for image in images])
    np.testing.assert_allclose(found, eager[:, -found.shape[1] :], rtol=0, atol=1e-6)
