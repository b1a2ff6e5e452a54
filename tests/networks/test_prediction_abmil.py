"""Attention over predictions against its equations, slice by slice."""

from __future__ import annotations

import torch

from monai_mil.networks import MaxPooling, MeanPooling, PredictionABMIL


def test_it_is_what_the_equations_say() -> None:
    torch.manual_seed(0)
    network = PredictionABMIL(6, 2, attention_dim=4).double()
    rows = torch.randn(9, 6, dtype=torch.float64)
    evidence = network.classifier(rows)
    attention = torch.softmax(network.score(torch.tanh(network.hidden(evidence)))[:, 0], dim=0)
    output = network(rows.T[None], return_dict=True)
    torch.testing.assert_close(output["attention"][0, 0], attention)
    torch.testing.assert_close(output["logits"][0], attention @ evidence)
    torch.testing.assert_close(output["instance_scores"][0].T, torch.sigmoid(evidence))


def test_an_anchor_s_copy_makes_the_same_scores() -> None:
    network = PredictionABMIL(6, 2)
    image, mask = torch.randn(2, 6, 9), torch.arange(9) < torch.tensor([[9], [4]])
    output = network(image, mask, return_dict=True)
    torch.testing.assert_close(network.anchor_copy().attention_scores(image, mask, output), output["attention_logits"])


def test_without_a_hidden_layer_the_slices_own_predictions_are_pooled() -> None:
    image = torch.randn(1, 6, 9)
    for pooling, pool in ((MeanPooling, torch.mean), (MaxPooling, torch.amax)):
        network = pooling(6, 2, hidden_dim=None)
        torch.testing.assert_close(network(image)[0], pool(network.classifier(image[0].T), dim=0))
        assert torch.jit.script(network)(image).shape == (1, 2)
