"""What inferers and transforms of an evaluation add to a network's output is listed, with the shape it has."""

import torch
from monai.data import decollate_batch

from monai_mil.networks import ABMIL, KEYS, instance_axis
from monai_mil.training import (
    Anchor,
    AnchorInferer,
    FullOutputInferer,
    GradCAMInferer,
    SurvivalRiskd,
    UnpackOutputd,
    prepare_instance_batch,
    prepare_positioned_bag_batch,
    prepare_token_batch,
)
from tests.networks.test_keys import N, check_fits, padded_mask

SIZES = {"b": 2, "c": 3, "n": N}


def network():
    torch.manual_seed(0)
    return ABMIL(4, 3, hidden_dim=8, attention_dim=4).eval()


def batch():
    mask = padded_mask()
    positions = torch.arange(N).expand(2, N).float()
    return {"image": torch.randn(2, 4, N), "mask": mask, "positions_mm": positions, "label": torch.zeros(2)}


def test_what_inferers_add_is_listed():
    model = network()
    image, _, _, keywords = prepare_positioned_bag_batch(batch())
    full = FullOutputInferer()(image, model, **keywords)
    anchored = AnchorInferer(Anchor(model))(image, model, mask=keywords["mask"])
    mapped = GradCAMInferer()(image, model, mask=keywords["mask"])
    for key, value in {**full, **anchored, **mapped}.items():
        check_fits(key, value, SIZES)
    assert {"positions", "anchor_logits", "anchor_weight", "grad_cam"} <= {*full, *anchored, *mapped}


def test_what_batches_are_prepared_from_is_listed():
    codes = {"image": torch.zeros(1, 4, 3, 2, 2, dtype=torch.uint8), "token_mask": torch.ones(1, 3, 2, 2).bool()}
    codes |= {"feature_scale": torch.ones(1, 4), "feature_offset": torch.ones(1, 4)}
    assert prepare_token_batch(codes)[3].keys() == {"mask", "scale", "offset"}
    labelled = {"image": torch.zeros(1, 4, 3), "instance_labels": torch.ones(1, 3)}
    assert prepare_instance_batch(labelled)[1].shape == (1, 3)
    for key, value in {**codes, **labelled}.items():
        check_fits(key, value, {"b": 1, "n": 3})


def test_what_the_postprocessing_adds_is_listed():
    given = batch()
    image, _, _, keywords = prepare_positioned_bag_batch(given)
    pred = FullOutputInferer()(image, network(), **keywords)
    cases = [SurvivalRiskd()(UnpackOutputd()(item)) for item in decollate_batch({**given, "pred": pred})]
    added = {"scores", "attention_center_mm", "attention_width_mm", "risk", "survival", "positions"}
    for case in cases:
        assert added <= case.keys() <= KEYS.keys()
        for key, value in case.items():
            check_fits(key, torch.as_tensor(value)[None], {"b": 1, "c": 3, "n": N})
            axis = instance_axis(key)
            assert axis is None or value.shape[axis] == N
