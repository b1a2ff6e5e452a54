"""Exported programs in place of the network, and exports of probabilities: the same predictions."""

import shutil

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export

from monai_mil.errors import MonaiMILError, SettingsError
from monai_mil.runs import BundleRun, find_bundle
from monai_mil.training import ExportedNetwork
from tests.bundles.common import BUNDLES, EXAMPLES, NAMES, bag_shape, config, network_width, rows

pytestmark = pytest.mark.parametrize("name", NAMES)


def exported(name, path, net_id="network_def", **overrides):
    ckpt_export(
        net_id=net_id,
        filepath=str(path),
        ckpt_file=str(BUNDLES / name / "models" / "model.pt"),
        meta_file=config(name, "metadata")[0],
        config_file=config(name, "inference"),
        **overrides,
    )
    return path


@pytest.fixture(scope="module")
def bags_of(cohort_of, tmp_path_factory):
    """``bags_of(bundle)`` is a folder of few bags of the bundle's example, beside the shipped weights without a card."""

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


def predictions(name, bags, out, **settings):
    """Columns of ``predictions.csv`` of the bundle's inference.json as one array."""
    own = {"dataset_dir": str(bags), "output_dir": str(out), "ckpt_path": str(bags / "model.pt"), "encoder": "synthetic"}
    BundleRun(find_bundle(name), ("inference",), {**own, **EXAMPLES[name].bags, **settings}).start()
    columns = [column for column in rows(out / "predictions.csv")[0] if column.startswith("prob")]
    return np.array([[float(row[column]) for column in columns] for row in rows(out / "predictions.csv")])


def test_programs_in_place_of_the_network_predict_the_same(name, bags_of, tmp_path):
    bags = bags_of(name)
    eager = predictions(name, bags, tmp_path / "eager")
    exported(name, tmp_path / "model.ts")
    scripted = predictions(name, bags, tmp_path / "ts", network_def=f"$torch.jit.load('{tmp_path / 'model.ts'}')")
    np.testing.assert_allclose(scripted, eager, rtol=0, atol=1e-6)
    files = {path.relative_to(tmp_path / "eager") for path in (tmp_path / "eager").rglob("*.*")}
    assert {path.relative_to(tmp_path / "ts") for path in (tmp_path / "ts").rglob("*.*")} == files
