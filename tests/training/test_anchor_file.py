"""The anchor beside its weights."""

import pytest
import torch

from monai_mil.errors import SettingsError
from monai_mil.networks import ABMIL
from monai_mil.training import Anchor, BestModel, claim_folder, read_anchor


@pytest.fixture
def trained(tmp_path):
    """A network, its anchor that lags behind, and the weights both were saved beside."""
    torch.manual_seed(0)
    network = ABMIL(8, 2, hidden_dim=8, attention_dim=4)
    anchor = Anchor(network, momentum=0.5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
    anchor.update()
    best = BestModel(network, tmp_path / "model.pt", settings={"class_names": ["a", "b"]}, anchor=anchor)
    best._save(network.state_dict())
    return network.eval(), anchor, tmp_path / "model.pt"


def test_it_scores_as_it_did_in_training(trained):
    network, anchor, path = trained
    image = torch.randn(1, 8, 5)
    output = network(image, return_dict=True)
    found = read_anchor(network, path)
    scores = found.attention_scores(image, None, output)
    assert torch.equal(scores, anchor(image, None, output))
    assert not torch.allclose(scores, output["attention_logits"])


def test_it_is_none_of_other_weights(trained):
    network, _, path = trained
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert read_anchor(network, path) is None


def test_without_a_file_there_is_none(trained):
    network, _, path = trained
    path.with_name("anchor.pt").unlink()
    assert read_anchor(network, path) is None


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_a_damaged_file_is_named(trained, content):
    network, _, path = trained
    place = path.with_name("anchor.pt")
    place.write_bytes(place.read_bytes()[:-200] if content is None else content)
    with pytest.raises(SettingsError, match=r"anchor '.*anchor\.pt' cannot be read"):
        read_anchor(network, path)


def test_another_run_removes_it(trained):
    path = trained[2]
    claim_folder(path.parent, overwrite=True)
    assert not list(path.parent.iterdir())
