"""Risks from the logits of an evaluation."""

from __future__ import annotations

import torch
from monai.transforms import Compose

from monai_mil.networks import ABMIL, INSIGHT
from monai_mil.networks.blocks import survival_curve, survival_risk
from monai_mil.training import SurvivalRiskd, UnpackOutputd


def test_logits_become_incidence_survival_and_risk() -> None:
    logits = torch.tensor([0.5, -1.0, 2.0])
    data = {"pred": logits, "label": torch.tensor([3.0, 1.0])}
    done = SurvivalRiskd("pred")(data)
    assert torch.equal(done["pred"], logits.softmax(0))
    assert torch.equal(done["survival"], survival_curve(logits))
    assert torch.equal(done["risk"], survival_risk(logits))
    assert data["pred"] is logits
    assert "risk" not in data


def test_whole_outputs_of_networks_are_read_by_their_logits() -> None:
    unpack = Compose([UnpackOutputd("pred"), SurvivalRiskd("pred")])
    for network, image in ((ABMIL(6, 4), torch.randn(1, 6, 5)), (INSIGHT(6, 4), torch.randn(1, 6, 5, 14, 14))):
        output = network.eval()(image, return_dict=True)
        done = unpack({"pred": {name: value[0].detach() for name, value in output.items()}})
        torch.testing.assert_close(done["risk"], survival_risk(output["logits"][0]).detach())
        torch.testing.assert_close(done["pred"].sum(), torch.tensor(1.0))


def test_missing_keys_may_be_allowed() -> None:
    assert SurvivalRiskd("pred", allow_missing_keys=True)({"image": 1}) == {"image": 1}
