"""A bundle as a server holds it: quick the second time, and never with weights that are not whole."""

import shutil
import time

import numpy as np
import pytest
import torch

from monai_mil.errors import SettingsError
from monai_mil.label import ANCHOR, ServedModel, score_image
from monai_mil.model_card import ModelCard, read_model, weights_digest
from monai_mil.runs import copy_bundle, find_bundle
from monai_mil.slides import write_pyramid


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "S-1.tif"
    image = np.full((512, 1024, 3), (180, 60, 140), np.uint8)
    image[:, 512:] = np.random.default_rng(0).integers(60, 200, (512, 512, 3))
    write_pyramid(path, image, mpp=0.5)
    return path


@pytest.fixture
def model(tmp_path, slide):
    bundle = find_bundle(copy_bundle(find_bundle("pathology_asmil"), tmp_path))
    return ServedModel(bundle, tmp_path / "features")


def changed_weights(model):
    card = read_model(model.weights)
    state = torch.load(model.weights, weights_only=True)
    state = {name: value + 0.01 if value.is_floating_point() else value for name, value in state.items()}
    return state, ModelCard(card.settings, weights_digest(state), card.weights, path=model.weights)


def test_an_answer_has_probabilities_a_map_and_the_fingerprint(model, slide):
    answer = model.answer("S-1", slide)
    assert sum(answer.facts["probabilities"].values()) == pytest.approx(1)
    assert answer.fingerprint == read_model(model.weights).weights == answer.facts["fingerprint"]
    assert answer.heatmap.coords.tolist() == [[x, y] for y in (0, 256) for x in (0, 256, 512, 768)]
    assert "synthetic" in answer.facts["note"]
    before = time.process_time()
    again = model.answer("S-1", slide)
    assert time.process_time() - before < 1
    assert again.facts == answer.facts


def test_scores_say_what_the_network_can(model, slide):
    scores = score_image(model, "S-1", slide)
    assert set(scores.values) == {"uncertainty", "heat", "bald"}
    assert (scores.fingerprint, model.has_anchor) == (model.fingerprint, False)
    with pytest.raises(SettingsError, match="has no anchor beside its weights"):
        model.anchor_disagreement("S-1", slide)
    assert model.embedding("S-1", slide).shape == (76,)


def test_the_anchor_of_the_same_weights_is_asked(model, slide):
    network = model._current().network
    state = {"weights": model.fingerprint, "network": network.anchor_copy().state_dict(), "steps": 1}
    torch.save(state, model.weights.with_name(ANCHOR))
    assert model.has_anchor
    assert model.anchor_disagreement("S-1", slide) == pytest.approx(0, abs=1e-6)
    torch.save({**state, "weights": "of others"}, model.weights.with_name(ANCHOR))
    assert not model.has_anchor


def test_new_weights_are_served_when_they_are_whole(model, slide, tmp_path):
    before = model.answer("S-1", slide)
    state, card = changed_weights(model)
    torch.save(state, tmp_path / "new.pt")
    whole = (tmp_path / "new.pt").read_bytes()
    model.weights.write_bytes(whole[:1000])
    assert model.answer("S-1", slide).facts == before.facts
    model.weights.write_bytes(whole)  # not yet those of its card
    assert model.answer("S-1", slide).facts == before.facts
    card.write()
    after = model.answer("S-1", slide)
    assert after.fingerprint == card.weights
    assert after.facts["probabilities"] != before.facts["probabilities"]


def test_a_slide_that_was_replaced_is_answered_anew_and_what_is_no_slide_is_told(model, slide, tmp_path):
    path = tmp_path / "S-1.tif"
    shutil.copy(slide, path)
    before = model.answer("S-1", path).facts
    write_pyramid(path, np.full((512, 512, 3), (120, 40, 160), np.uint8), mpp=0.5)
    assert model.answer("S-1", path).facts["probabilities"] != before["probabilities"]
    path.write_text("no slide")
    with pytest.raises(SettingsError, match=r"S-1\.tif"):
        model.answer("S-1", path)
