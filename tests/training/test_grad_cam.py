"""Grad-CAM of a bundle's evaluation, engine and all."""

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from monai_mil.bags import LoadBagd, collate_bags
from monai_mil.cohorts import read_cohort
from monai_mil.heatmaps import Heatmap
from monai_mil.networks import ABMIL, INSIGHT, grad_cam
from monai_mil.savers import HeatmapSaver
from monai_mil.synthetic import make_bag_cohort
from monai_mil.training import GradCAMInferer, UnpackOutputd, prepare_bag_batch


@pytest.mark.parametrize("grid", [None, (3, 4)])
def test_an_evaluator_saves_the_grad_cam_of_every_bag(tmp_path, grid):
    cohort = read_cohort(make_bag_cohort(tmp_path / "cohort", num_bags=11, width=8, bag_size=(5, 9), grid=grid))
    items = cohort.datalist(bag_dir=cohort.source.parent / "bags")
    torch.manual_seed(0)
    network = ABMIL(8, 1, 8, 4) if grid is None else INSIGHT(8, 1, grid=grid, reduced=8, widths=(8, 4, 4))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items, LoadBagd()), batch_size=2, collate_fn=collate_bags),
        network=network,
        inferer=GradCAMInferer(),
        prepare_batch=prepare_bag_batch,
        postprocessing=UnpackOutputd(),
        val_handlers=[HeatmapSaver(str(tmp_path), key="grad_cam")],
    )
    evaluator.run()
    for item in items:
        bag = LoadBagd()(item)
        saved = Heatmap.load(tmp_path / "heatmaps" / f"{bag['slide_id']}.h5")
        expected = grad_cam(network, bag["image"][None].as_tensor())[0, 0]
        torch.testing.assert_close(torch.as_tensor(saved.scores), expected, rtol=1e-4, atol=1e-5)
        assert saved.name == "grad_cam"
