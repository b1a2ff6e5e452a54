"""The 3D networks beside MIL in ct_insight: each is trained on volumes of pixels, one on voxels, and predicts."""

import json

import numpy as np
import pytest
import torch

from monai_mil.bags import LoadBagd
from monai_mil.cohorts import ScanTruthd, read_cohort
from monai_mil.embedding import embed_scans
from monai_mil.encoders import get_encoder
from monai_mil.errors import AnnotationError
from monai_mil.synthetic import lesion_truth, make_scan_cohort
from tests.bundles.common import workflow

NAME = "ct_insight"
OVERLAYS = {"cnn3d": ["volume"], "densenet121": ["volume"], "unet3d": ["volume", "voxel_supervised"]}
SIZES = {"cnn3d": [32, 64, 64], "densenet121": [32, 64, 64], "unet3d": [16, 128, 128]}


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes")
    table = make_scan_cohort(
        folder, num_scans=6, seed=3, slices=(8, 9), size=64, fractions=(0.34, 0.33, 0.33), lesions=3
    )
    embed_scans(table, folder / "bags", get_encoder("ct_pixels", spatial=True), preset="insight", progress=False)
    return folder


def positive(scans):
    items = read_cohort(scans / "cohort.csv").datalist(None, scans / "bags")
    return next(item for item in items if item["label"])


@pytest.mark.parametrize("method", OVERLAYS)
def test_a_reference_is_trained_and_predicts(method, scans, tmp_path):
    places = {"dataset_dir": scans, "depth": "any", "lungs": "any"}
    options = {**places, "ckpt_dir": tmp_path, "output_dir": tmp_path, "method": method, "size": SIZES[method]}
    overlays = OVERLAYS[method]
    short = {"train::dataset::data": "$@cohort.datalist('train', @bag_dir)[:1]", "val_interval": 9}
    run = workflow(NAME, ["train", *overlays], **options, **short, **{"train::trainer::max_epochs": 1})
    trainer, best = (run.parser.get_parsed_content(key) for key in ("train::trainer", "best_model"))
    before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    trainer.run()
    assert any((old != new).any() for old, new in zip(before, trainer.network.parameters(), strict=True))

    best._save(trainer.network.state_dict())
    assert json.loads((tmp_path / "model.json").read_text())["settings"]["method"] == method
    predicting = {**places, "ckpt_path": tmp_path / "model.pt", "output_dir": tmp_path / "out"}
    predicting["datalist"] = "$cohorts.bag_datalist(@bag_dir, 'scan_id')[:2]"
    workflow(NAME, ["inference", "inference_volume"], **predicting).run()
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 1 + 2


def test_masks_become_shares_of_the_tokens_they_cover(scans):
    item = LoadBagd("image")(positive(scans))
    shares = ScanTruthd("image", scans / "masks")(item)["token_labels"]
    truth = torch.from_numpy(lesion_truth(scans / "masks" / f"{item['scan_id']}.npz")).float()
    assert shares.shape == (len(truth), 1, 128, 128)
    nearest = torch.nn.functional.interpolate(truth[:, None], (128, 128), mode="nearest")
    assert ((shares > 0.5) == (nearest > 0.5)).float().mean() > 0.99
    np.testing.assert_allclose(shares.mean(dim=(1, 2, 3)), truth.mean(dim=(1, 2)), atol=2e-3)
    assert not ScanTruthd("image", scans / "nowhere")({**item, "label": 0})["token_labels"].any()
    with pytest.raises(AnnotationError, match="no ground truth in"):
        ScanTruthd("image", scans / "nowhere")(item)
